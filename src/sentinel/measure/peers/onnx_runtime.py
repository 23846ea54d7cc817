"""ONNX Runtime on a graph of its fused operators: fp32, dynamic int8 and MatMulNBits in 8 and 4 bits (LM head included)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from sentinel.formats.onnx_support import SUPPORTS as SUPPORTS
from sentinel.infer.generate import Timings
from sentinel.measure.peers.peer import PeerSettings, Runner
from sentinel.models.decoder import Decoder
from sentinel.models.spec import ModelSpec

NAME = "onnxruntime"
MODULES = ("onnxruntime", "onnx")
REQUIREMENTS = ("onnxruntime", "onnx")
VARIANTS = {"fp32": "fp32", "dynamic int8": "int8", "int8 blocks": "int8", "int4 blocks": "int4"}
MAX_BATCH = 32


def prepare(decoder: Decoder, folder: Path, variant: str, settings: PeerSettings) -> OnnxRuntime:
    """A runner of ``decoder`` with its matrices in the form ``variant``."""
    from sentinel.formats.onnx_graph import write_onnx

    path = folder / f"{variant.replace(' ', '-')}.onnx"
    streamed = write_onnx(decoder, path, cast(Any, variant))
    return OnnxRuntime(f"{NAME} {variant}", path, decoder.spec, streamed, settings)


class OnnxRuntime(Runner):
    """One session with all graph optimisations. Buffers are bound once, so that a step copies no key or value."""

    def __init__(self, name: str, path: Path, spec: ModelSpec, weight_bytes: int, settings: PeerSettings) -> None:
        import onnxruntime  # pyright: ignore[reportMissingImports]

        super().__init__(name, spec, weight_bytes)
        self._settings, self._value = settings, onnxruntime.OrtValue.ortvalue_from_numpy
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = settings.threads
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._logits = np.empty((settings.batch, spec.vocab_size), np.float32)
        self._outputs = {"logits": self._value(self._logits)}
        self._caches: dict[str, Any] = {}
        for i, layer in enumerate(spec.layers):
            for name in ("key", "value") if layer.n_kv_head else ():
                shape = (settings.batch, layer.n_kv_head, settings.room, layer.head_dim)
                self._caches[f"{name}.{i}"] = self._value(np.zeros(shape, np.float32))
                self._outputs[f"new_{name}.{i}"] = self._caches[f"{name}.{i}"]
        self._bound: dict[int, tuple[Any, dict[str, NDArray[Any]]]] = {}

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int, timings: Timings) -> list[list[int]]:
        """Exactly ``new_tokens`` greedy tokens for each of the equally long ``prompts``."""
        start = time.perf_counter()
        tokens: NDArray[Any] = np.array(prompts, np.int64)
        steps: list[NDArray[Any]] = []
        past = 0
        for _ in range(new_tokens):
            self._run(tokens, past)
            past += tokens.shape[1]
            steps.append(self._logits.argmax(-1))
            timings.stamps.append(time.perf_counter() - start)
            tokens = steps[-1][:, None]
        return np.stack(steps, 1).tolist()

    def _run(self, tokens: NDArray[Any], past: int) -> None:
        """Logits after ``tokens`` [B, T] on top of ``past`` cached positions."""
        new = tokens.shape[1]
        if new not in self._bound:
            self._bound[new] = self._bind(new)
        binding, inputs = self._bound[new]
        inputs["tokens"][:] = tokens
        inputs["seqlens"][:] = past + new - 1
        inputs["total"][...] = past + new
        self._session.run_with_iobinding(binding)

    def _bind(self, new: int) -> tuple[Any, dict[str, NDArray[Any]]]:
        """All buffers of a step of ``new`` tokens, and those of the inputs to be filled in."""
        batch = self._settings.batch
        inputs = {
            "tokens": np.zeros((batch, new), np.int64),
            "seqlens": np.zeros(batch, np.int32),
            "total": np.zeros((), np.int32),
        }
        binding = self._session.io_binding()
        for name, value in {**self._caches, **{n: self._value(a) for n, a in inputs.items()}}.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            binding.bind_ortvalue_output(name, value)
        return binding, inputs

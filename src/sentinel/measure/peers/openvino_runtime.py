"""OpenVINO's runtime on the ONNX graphs, with keys and values as states of the model.

The runtime is what openvino-genai runs on; its pipeline would ask for a tokenizer, and token ids are compared here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from sentinel.infer.generate import Timings
from sentinel.measure.peers.peer import PeerSettings, Runner
from sentinel.models.decoder import Decoder
from sentinel.models.features import PLAIN, ROPE_SCALINGS, SINGLE_BIASES
from sentinel.models.spec import ModelSpec

NAME = "openvino"
MODULES = ("openvino", "onnx")
REQUIREMENTS = ("openvino", "onnx")
VARIANTS = {"fp32": "fp32", "int8 blocks": "int8", "int4 blocks": "int4"}
MAX_BATCH = 1  # of its GroupQueryAttention
SUPPORTS = PLAIN | SINGLE_BIASES | {"no positions"} | (ROPE_SCALINGS - {"rotary scaling longrope"})


def prepare(decoder: Decoder, folder: Path, variant: str, settings: PeerSettings) -> OpenVino:
    """A runner of ``decoder`` with its matrices in the form ``variant``."""
    from sentinel.formats.onnx_graph import write_onnx

    path = folder / f"openvino-{variant.replace(' ', '-')}.onnx"
    streamed = write_onnx(decoder, path, cast(Any, variant))
    return OpenVino(f"{NAME} {variant}", path, decoder.spec, streamed, settings)


class OpenVino(Runner):
    """One compiled model, set to the lowest latency and to fp32 between the matrices."""

    def __init__(self, name: str, path: Path, spec: ModelSpec, weight_bytes: int, settings: PeerSettings) -> None:
        import openvino  # pyright: ignore[reportMissingImports]
        from openvino._offline_transformations import apply_make_stateful_transformation  # pyright: ignore[reportMissingImports]

        super().__init__(name, spec, weight_bytes)
        core = openvino.Core()
        model = core.read_model(str(path))
        caches = {
            f"{kind}.{i}": [settings.batch, layer.n_kv_head, -1, layer.head_dim]
            for i, layer in enumerate(spec.layers)
            for kind in ("key", "value")
        }
        model.reshape({**caches, "tokens": [settings.batch, -1], "seqlens": [settings.batch]})
        apply_make_stateful_transformation(model, {cache: f"new_{cache}" for cache in caches})
        options = {
            "INFERENCE_NUM_THREADS": settings.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": "f32",
        }
        self._request = core.compile_model(model, "CPU", options).create_infer_request()
        self._inputs = {value.any_name for value in model.inputs}

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int, timings: Timings) -> list[list[int]]:
        """Exactly ``new_tokens`` greedy tokens for the one prompt."""
        start = time.perf_counter()
        self._request.reset_state()
        tokens: NDArray[Any] = np.array(prompts, np.int64)
        steps: list[NDArray[Any]] = []
        past = 0
        for _ in range(new_tokens):
            total = past + tokens.shape[1]
            inputs = {
                "tokens": tokens,
                "seqlens": np.full(len(prompts), total - 1, np.int32),
                "total": np.array(total, np.int32),
            }
            self._request.infer({name: inputs[name] for name in inputs if name in self._inputs}, share_inputs=True)
            steps.append(self._request.get_output_tensor(0).data.argmax(-1))
            timings.stamps.append(time.perf_counter() - start)
            tokens, past = steps[-1][:, None], total
        return np.stack(steps, 1).tolist()

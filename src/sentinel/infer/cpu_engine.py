"""Levels 2 and 3 on the CPU: the native engine behind the interface of all engines, and its checkpoints.

A quantised checkpoint is a folder of ``config.json``, ``model.native.safetensors`` and the tokenizer's files. It runs
without importing torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sentinel.errors import InputError
from sentinel.files import write_folder
from sentinel.infer.engines import Logits, check_prompts
from sentinel.infer.native import MAX_BATCH, NativeEngine, NativeWeights, Precision
from sentinel.models.folder import MODEL_TYPE, is_checkpoint
from sentinel.models.spec import ModelSpec
from sentinel.models.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from sentinel.models.decoder import Decoder
    from sentinel.models.elastic import PruningLevel

WEIGHTS_FILE = "model.native.safetensors"


class CpuEngine:
    """Runs packed weights; level 2 when they are fp32, level 3 when they are quantised."""

    def __init__(self, weights: NativeWeights, *, threads: int | None = None) -> None:
        self.weights = weights
        self.spec: ModelSpec = weights.spec
        self.level = 2 if weights.precision == "fp32" else 3
        self.precision: str = weights.precision
        self.kv_bytes = 4 if self.level == 2 else 2
        self.name = "level 2" if self.level == 2 else f"level 3 {weights.precision}"
        self._threads = threads
        self._engine: NativeEngine | None = None
        self._batch = self._room = 0
        self._pruned: tuple[Sequence[int], Sequence[int], Mapping[str, NDArray[np.float32]]] | None = None

    def weight_bytes_per_token(self) -> int:
        """Bytes of packed weights read to decode one token at batch 1, at the level that is set."""
        stored = self.weights.n_byte - 4 * self.spec.max_seq_len * self.spec.n_embd * (self.spec.positions == "learned")
        if self._pruned is None:
            return stored
        smaller = self.spec.with_counts(self._pruned[0], self._pruned[1])
        return round(stored * smaller.streamed_weights_per_token() / self.spec.streamed_weights_per_token())

    def set_level(
        self,
        groups: Sequence[int],
        neurons: Sequence[int],
        projections: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> None:
        """Use the first head groups and neurons of each layer only; ``projections`` are the level's re-solved ones."""
        self._pruned = (groups, neurons, projections or {})
        if self._engine is not None:
            self._engine.set_level(groups, neurons, projections)

    def prefill(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Logits:
        """Logits [B, V] after each prompt; lengths may differ."""
        check_prompts(self.spec, prompts, max_new_tokens)
        if len(prompts) > MAX_BATCH:
            raise InputError(f"levels 2 and 3 take at most {MAX_BATCH} prompts at once, not {len(prompts)}")
        room = max(len(prompt) for prompt in prompts) + max_new_tokens
        return self._sized(len(prompts), room).prefill(prompts)

    def decode_one_token(self, tokens: Sequence[int]) -> Logits:
        """Logits [B, V] after one more token per sequence."""
        if self._engine is None:
            raise InputError("decode_one_token needs a prefill first")
        return self._engine.decode(tokens)

    def score(self, tokens: Sequence[int]) -> Logits:
        """Logits [T, V] at every position of one text."""
        if not 1 <= len(tokens) <= self.spec.max_seq_len:
            raise InputError(f"a text of 1 to {self.spec.max_seq_len} tokens can be scored, not one of {len(tokens)}")
        return self._sized(1, len(tokens)).score(tokens)

    def profile(self) -> dict[str, int]:
        """Time-stamp counts per part since the last call; see `NativeEngine.profile`."""
        return {} if self._engine is None else self._engine.profile()

    def kv_cache_bytes(self) -> int:
        """Bytes that the KV cache has room for."""
        return 0 if self._engine is None else self._engine.kv_cache_bytes

    def work_bytes(self) -> int:
        """Bytes of the areas that a pass works in."""
        return 0 if self._engine is None else self._engine.work_bytes

    def close(self) -> None:
        """Stop the worker threads."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _sized(self, batch: int, room: int) -> NativeEngine:
        """An engine with room for that many sequences and positions; the last one where it is large enough."""
        if self._engine is None or batch > self._batch or room > self._room:
            self.close()
            self._batch = max(batch, self._batch)
            self._room = min(self.spec.max_seq_len, -(-max(room, self._room) // 256) * 256)
            self._engine = NativeEngine(
                self.weights, threads=self._threads, max_batch=self._batch, max_tokens=self._room
            )
            if self._pruned is not None:
                self._engine.set_level(*self._pruned)
        return self._engine


def pack(decoder: Decoder, precision: Precision) -> NativeWeights:
    """The native engine's weights of a decoder; an elastic one gives those of its dense level, in nested order."""
    from sentinel.models.elastic import ElasticDecoder, dense_state

    state = dense_state(decoder) if isinstance(decoder, ElasticDecoder) else decoder.state_dict()
    arrays = {name: tensor.detach().float().cpu().numpy() for name, tensor in state.items()}
    return NativeWeights.from_arrays(decoder.spec, arrays, precision)


def engine_of(decoder: Decoder, precision: Precision, *, threads: int | None = None) -> CpuEngine:
    """A native engine that runs what ``decoder`` computes, at the pruning level that is set."""
    from sentinel.models.elastic import ElasticDecoder

    engine = CpuEngine(pack(decoder, precision), threads=threads)
    groups = [block.attn.active_groups for block in decoder.blocks]
    neurons = [block.mlp.active_neurons for block in decoder.blocks]
    full = [layer.n_kv_head for layer in decoder.spec.layers], [la.intermediate_size for la in decoder.spec.layers]
    if (groups, neurons) != full:
        level = decoder.current if isinstance(decoder, ElasticDecoder) else None
        engine.set_level(groups, neurons, level_projections(level))
    return engine


def level_projections(level: PruningLevel | None) -> dict[str, NDArray[np.float32]]:
    """The re-solved projections of a stored pruning level, as arrays."""
    return {} if level is None else {name: t.detach().numpy() for name, t in level.projections.items()}


def save_quantised(weights: NativeWeights, folder: str | Path, tokenizer: TextTokenizer | None, source: str) -> None:
    """Write a quantised checkpoint, whole or not at all."""
    config: dict[str, Any] = {
        "model_type": MODEL_TYPE,
        "precision": weights.precision,
        "spec": weights.spec.to_dict(),
        "source": source,
    }
    if tokenizer is not None and tokenizer.eos_ids:
        config["eos_token_id"] = list(tokenizer.eos_ids)
    with write_folder(folder, is_checkpoint) as temporary:
        weights.save(temporary / WEIGHTS_FILE)
        if tokenizer is not None:
            tokenizer.copy_files(temporary)
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def is_quantised(folder: Path) -> bool:
    """True for a folder that `save_quantised` wrote."""
    return (folder / WEIGHTS_FILE).exists()


def load_quantised(folder: Path) -> tuple[NativeWeights, TextTokenizer | None]:
    """The weights and the tokenizer of a quantised checkpoint; `InputError` when they do not belong together."""
    from sentinel.models.folder import read_config

    weights = NativeWeights.load(folder / WEIGHTS_FILE)
    if ModelSpec.from_dict(read_config(folder).get("spec", {})) != weights.spec:
        raise InputError(f"{folder}: config.json and {WEIGHTS_FILE} are of different models; quantise again")
    return weights, TextTokenizer.from_folder(folder)

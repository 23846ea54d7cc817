"""The buffers of one engine, and the integer tables through which the compiled step finds everything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sentinel.models.rotary import tables, turns
from sentinel.models.spec import RopeSpec
from sentinel.models.tensors import TensorSpec, tensors_of

from . import memory
from .blocks import padded
from .kernels import layout
from .kernels.cpu import TILE_TOKENS
from .kernels.layout import S
from .kernels.names import Activation, Kind, Part
from .kv_cache import TYPES, KvArea, KvKind
from .packed_file import PackedTensors
from .precisions import PRECISIONS
from .weights import NativeWeights, place_of
from .widths import PackedWidth, cut


class Tables:
    """State, layer table and buffers for ``max_batch`` sequences of ``max_tokens`` positions.

    ``rows`` [MAX_ROWS][fields] takes the tokens of a pass; ``logits`` [MAX_WANTED][V], ``residual`` [MAX_ROWS][C], with
    the wanted rows first, ``best`` and ``profile`` hold what it found. The tables point into ``weights``, which they keep
    alive.
    """

    def __init__(self, weights: NativeWeights, *, threads: int, max_batch: int, max_tokens: int, kv: KvKind) -> None:
        self.spec = weights.spec
        self.weights = weights
        self.state = np.zeros(S.N_FIELD, np.int64)
        self._described = self.spec.with_baseline_layers()  # the model's layers, then those of its baseline
        self.layers = np.zeros((self._described.n_layer, layout.LAYER_FIELDS), np.int64)
        self._threads = threads
        self._context = padded(max_tokens)
        self._turns = turns(self.spec)
        self._length = 0  # of the texts of a pass, as far as rotary angles depend on it: see `use_length`
        self._buffers: dict[str, NDArray[Any]] = {}
        self._rotary: dict[tuple[RopeSpec, int, int], tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
        self._width: PackedWidth | None = None  # kept alive: the tables point into its projections
        self._tensors: dict[str, list[TensorSpec]] = {}
        for tensor in tensors_of(self.spec):
            self._tensors.setdefault(place_of(tensor), []).append(tensor)
        self._allocate()
        self._place_cache(KvArea(self._described.layers, max_batch, self._context, kind=kv))
        self._describe_model()
        if self.spec.integration is not None:
            self._describe_baseline()
            self._describe_fusions()

    def set_width(self, width: PackedWidth) -> None:
        """Make the layer table say what ``width`` uses."""
        for i in range(self.spec.n_layer):
            self._describe_layer(i, f"layers.{i}", width)
        self._width = width

    def use_length(self, length: int) -> None:
        """Let the passes that follow have the rotary angles of texts of that length."""
        length = max((turn + 1 for turn in self._turns if length > turn), default=0)
        if length != self._length:
            self._length = length
            for i in range(len(self._described.layers)):
                self._describe_angles(i)

    def _describe_angles(self, index: int) -> None:
        fields, y = self.layers[index], self._described.layers[index]
        if y.attention.rope is not None:
            cos, sin = self._rotary[y.attention.rope, y.head_dim, self._length]
            fields[layout.L_COS], fields[layout.L_SIN] = cos.ctypes.data, sin.ctypes.data
            fields[layout.L_ROTARY] = cos.shape[1]

    @contextmanager
    def without_head(self) -> Iterator[None]:
        """Let passes inside make no logits."""
        held, self.state[S.HEAD] = int(self.state[S.HEAD]), self._buffers["no head"].ctypes.data
        try:
            yield
        finally:
            self.state[S.HEAD] = held

    def reset_threads(self) -> None:
        """Forget how far threads have come."""
        self._buffers["SYNC"][:] = 0
        stride = int(self.state[S.PRIVATE_STRIDE])
        for start in range(0, stride * self._threads, stride):
            self._buffers["PRIVATE"][start : start + layout.P_BEST] = 0

    def widen_cache(self) -> None:
        """Keep keys and values in float32 from here on, those that are there included."""
        self._place_cache(self.cache.widened())

    # --- buffers ----------------------------------------------------------------------------------------------------

    def _allocate(self) -> None:
        strides = self._strides()
        for field, stride in strides.items():
            self.state[field] = stride
        for field, size in self._sizes(strides).items():
            self._buffers[field.name] = memory.buffer(size, huge=False)
            self.state[field] = self._buffers[field.name].ctypes.data
        self.rows = self._buffers["ROWS"].view(np.int64).reshape(-1, layout.ROW_FIELDS)
        self.best = self._buffers["BEST"].view(np.int64)
        self.profile = self._buffers["PROFILE"].view(np.int64)
        self.residual = self._buffers["X"].view(np.float32).reshape(-1, strides[S.X_STRIDE] // 4)
        self.logits = self._buffers["LOGITS"].view(np.float32).reshape(-1, strides[S.LOGITS_STRIDE] // 4)

    @property
    def work_bytes(self) -> int:
        """Bytes of all areas but that of keys and values."""
        return sum(area.nbytes for area in self._buffers.values())

    def _strides(self) -> dict[S, int]:
        """Bytes per row of every buffer: odd numbers of cache lines, so that a tile's rows lie in different sets."""
        spec, fused = self._described, self.spec.integration
        heads = max(y.n_head * y.head_dim for y in spec.layers)
        states = spec.n_embd if fused is None else 2 * spec.n_embd
        neurons = max(0 if fused is None else fused.rank or 0, *(y.intermediate_size for y in spec.layers))
        widest = padded(max(states, heads, neurons))
        input_bytes = max(PRECISIONS[p.kind].INPUT_BYTES for p in self.weights.parts.values() if p.kind)
        places = max(y.attention.cached(self._context) for y in spec.layers)
        scores = max(TILE_TOKENS) * (places + 32) * 4
        return {
            S.X_STRIDE: _odd_lines(4 * padded(spec.n_embd)),
            S.QKV_STRIDE: _odd_lines(4 * padded(max(y.qkv_rows for y in spec.layers))),
            S.ATTENTION_STRIDE: _odd_lines(4 * padded(heads)),
            S.HIDDEN_STRIDE: _odd_lines(4 * padded(neurons)),
            S.INPUT_STRIDE: _odd_lines(input_bytes * widest),
            S.INPUT_SUM_STRIDE: _odd_lines(4 * widest // 32),
            S.LOGITS_STRIDE: _odd_lines(4 * padded(spec.vocab_size)),
            S.PRIVATE_STRIDE: _odd_lines(layout.P_SCORES + max(scores, 4 * padded(states))),
        }

    def _sizes(self, strides: dict[S, int]) -> dict[S, int]:
        n_row = layout.MAX_ROWS
        n_input_row = max(n_row, self._threads)
        return {
            S.X: strides[S.X_STRIDE] * n_row,
            S.OUTPUT: strides[S.X_STRIDE] * n_row if self.spec.block.post_norm else 0,
            S.QKV: strides[S.QKV_STRIDE] * n_row + 256,
            S.ATTENTION: strides[S.ATTENTION_STRIDE] * n_row,
            S.HIDDEN: strides[S.HIDDEN_STRIDE] * n_row,
            S.INPUT: strides[S.INPUT_STRIDE] * n_input_row,
            S.INPUT_SCALE: strides[S.INPUT_SUM_STRIDE] * n_input_row,
            S.INPUT_SUM: strides[S.INPUT_SUM_STRIDE] * n_input_row,
            S.LOGITS: strides[S.LOGITS_STRIDE] * layout.MAX_WANTED,
            S.BEST: 8 * layout.MAX_WANTED,
            S.PRIVATE: strides[S.PRIVATE_STRIDE] * self._threads,
            S.SYNC: layout.Y_PARKED + 64 * self._threads,
            S.PLAN: 8 * layout.PLAN_INTS,
            S.PROFILE: 8 * len(Part),
            S.ROWS: 8 * layout.ROW_FIELDS * n_row,
        }

    def _place_cache(self, cache: KvArea) -> None:
        self.cache = cache
        self.state[S.KV_BYTES] = np.dtype(TYPES[cache.kind]).itemsize
        fields = (layout.L_KEYS, layout.L_VALUES, layout.L_KEY_SCALES, layout.L_VALUE_SCALES)
        for i, y in enumerate(self._described.layers):
            for field, array in zip(fields, cache.of_layer(i), strict=False):  # scales in int8 alone
                self.layers[i, field] = array.ctypes.data
            self.layers[i, layout.L_KV_STRIDE], self.layers[i, layout.L_PLACES] = y.n_kv_head, cache.places[i]

    # --- what the tables say ----------------------------------------------------------------------------------------

    def _describe_model(self) -> None:
        spec, st = self.spec, self.state
        st[S.THREADS], st[S.N_LAYER], st[S.N_EMBD] = self._threads, spec.n_layer, spec.n_embd
        st[S.VOCAB] = spec.vocab_size
        st[S.LAYERNORM] = spec.norm.kind == "layernorm"
        st[S.EPS_BITS], st[S.PARALLEL] = _bits(spec.norm.eps), spec.block.parallel
        st[S.EMBED_SCALE_BITS], st[S.LOGIT_CAP_BITS] = _bits(spec.embed_scale), _bits(spec.logit_soft_cap or 0.0)
        st[S.LAYERS] = self.layers.ctypes.data
        matrices = np.zeros((2, layout.MATRIX_FIELDS), np.int64)
        self._buffers["matrices"] = matrices
        matrices[0] = _matrix([self.weights], "lm_head", spec.vocab_size, spec.n_embd)
        matrices[1] = matrices[0] if spec.tied_head else _matrix([self.weights], "embed", spec.vocab_size, spec.n_embd)
        self._buffers["no head"] = no_head = matrices[0].copy()
        no_head[layout.N_ROW] = 0
        st[S.HEAD], st[S.EMBED] = matrices[0].ctypes.data, matrices[1].ctypes.data
        address = self.weights.address
        st[S.POSITIONS] = address("positions.weight")
        st[S.FINAL_NORM], st[S.FINAL_NORM_BIAS] = address("final_norm.weight"), address("final_norm.bias")
        for rope, head_dim in {(y.attention.rope, y.head_dim) for y in self._described.layers}:
            for length in (0, *(turn + 1 for turn in self._turns)):
                if rope is not None:
                    self._rotary[rope, head_dim, length] = tables(rope, head_dim, self._context, length)

    def _describe_baseline(self) -> None:
        """The baseline's layers, all of each, its embeddings, and which of its states are kept."""
        assert self.spec.integration is not None
        baseline, st, n_layer = self.spec.integration.baseline, self.state, self.spec.n_layer
        if baseline is None:
            return
        for i in range(baseline.n_layer):
            self._describe_layer(n_layer + i, f"baseline.layers.{i}", None)
        embed = np.array(_matrix([self.weights], "baseline.embed", baseline.vocab_size, baseline.n_embd), np.int64)
        self._buffers["baseline embed"] = embed
        st[S.N_BASELINE], st[S.BASELINE_EMBED] = baseline.n_layer, embed.ctypes.data
        st[S.BASELINE_POSITIONS] = self.weights.address("baseline.positions.weight")

    def _describe_fusions(self) -> None:
        """Where early states and those of the baseline are kept, and the fusions that read them."""
        wanted, n_layer = self.spec.integration, self.spec.n_layer
        assert wanted is not None
        pairs, size = n_layer // 2, int(self.state[S.X_STRIDE]) * layout.MAX_ROWS
        kinds = wanted.skips + (wanted.baseline is not None)
        kept = memory.buffer(kinds * pairs * size, huge=False)
        self._buffers["kept states"] = kept
        for late in range(pairs):
            layer = n_layer - pairs + late
            early, unpruned = (kept.ctypes.data + (place + late) * size for place in (0, pairs * wanted.skips))
            if wanted.skips:
                self.layers[n_layer - layer, layout.L_KEEP] = early  # the input of the layer after the early one
                self._describe_fusion(layer, layout.L_SKIP, f"integration.skips.{late}", early)
            if wanted.baseline is not None:
                if late + 1 < pairs:
                    self.layers[n_layer + layer, layout.L_KEEP] = unpruned
                else:
                    self.state[S.BASELINE_KEEP] = unpruned
                self._describe_fusion(layer, layout.L_ADAPTER, f"integration.adapters.{late}", unpruned)

    def _describe_fusion(self, layer: int, start: int, name: str, other: int) -> None:
        fields = self.layers[layer, start : start + layout.FUSION_FIELDS]
        fields[layout.F_OTHER] = other
        self._describe(fields, name, layout.FUSION_TENSORS, None)

    def _describe_layer(self, index: int, place: str, used: PackedWidth | None) -> None:
        fields, y = self.layers[index], self._described.layers[index]
        n_kv_head = y.n_kv_head if used is None else used.width.groups[index]
        n_neuron = y.intermediate_size if used is None else used.width.neurons[index]
        fields[layout.L_HEAD], fields[layout.L_KV_HEAD] = y.group_size * n_kv_head, n_kv_head
        fields[layout.L_HEAD_DIM], fields[layout.L_NEURON] = y.head_dim, n_neuron
        fields[layout.L_GATED], fields[layout.L_ACTIVATION] = y.mlp.gated, Activation[y.mlp.activation.upper()]
        attention = y.attention
        self._describe_angles(index)
        fields[layout.L_WINDOW] = attention.window or 0
        fields[layout.L_SCALE_BITS] = _bits(attention.score_scale)
        fields[layout.L_CAP_BITS] = _bits(attention.soft_cap or 0.0)
        fields[layout.L_WHOLE_NORM] = attention.qk_norm == "whole"
        self._describe(fields, place, layout.LAYER_TENSORS, used)
        if self.spec.block.shared_norm:
            fields[layout.L_NORM2], fields[layout.L_NORM2_BIAS] = fields[layout.L_NORM1], fields[layout.L_NORM1_BIAS]
        for start, bias in ((layout.L_OUT, layout.L_POST1_BIAS), (layout.L_DOWN, layout.L_POST2_BIAS)):
            if fields[bias]:  # the norm after an empty half makes something of nothing
                fields[start + layout.N_ROW] = self.spec.n_embd

    def _describe(
        self, fields: NDArray[np.int64], place: str, known: Mapping[str, int], used: PackedWidth | None
    ) -> None:
        """Say where the tensors of a layer or a fusion are, and how much of each a width uses: by default, all."""
        tensors = self._tensors[place]
        sources = [self.weights] if used is None or used.projections is None else [used.projections, self.weights]
        matrices = {tensor.name.removesuffix(".weight") for tensor in tensors if tensor.is_matrix}
        for tensor in tensors:
            if tensor.name.endswith(".gate") or tensor.name.removesuffix(".bias") in matrices:
                continue  # gates are folded, and the bias of a matrix stands with it
            start = known[tensor.name.removeprefix(f"{place}.")]
            if tensor.is_matrix:
                n_row, n_column = tensor.shape if used is None else cut(tensor, used.width).shape
                matrix = _matrix(sources, tensor.name.removesuffix(".weight"), n_row, n_column)
                fields[start : start + layout.MATRIX_FIELDS] = matrix
            else:
                fields[start] = self.weights.address(tensor.name)


def _matrix(sources: Sequence[PackedTensors], name: str, n_row: int, n_column: int) -> list[int]:
    """Fields of a matrix of which the first ``n_row`` rows and ``n_column`` columns are used, from the first that has it.

    One without inputs still adds its bias; without either it is left out.
    """
    bias = next((address for source in sources if (address := source.address(f"{name}.bias"))), 0)
    n_row = n_row if n_column or bias else 0
    for source in sources:
        if part := source.parts.get(f"{name}.packed"):
            precision = PRECISIONS[part.kind]
            packed, scale = (source.address(f"{name}.{what}") for what in ("packed", "scale"))
            return [precision.KIND, packed, scale, bias, precision.block_bytes(part.n_column), n_row, n_column]
    return [Kind.FP32, 0, 0, bias, 0, n_row, 0]


def _bits(value: float) -> int:
    """The bits of a float32."""
    return int(np.float32(value).view(np.int32))


def _odd_lines(n_byte: int) -> int:
    lines = -(-n_byte // 64)
    return 64 * (lines + 1 - lines % 2)

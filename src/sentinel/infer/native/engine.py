"""`NativeEngine`: prefill and decode of one model on the CPU, at any pruning level of its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from sentinel.errors import InputError
from sentinel.models.spec import ModelSpec, RopeSpec

from . import layout, memory, packing
from .layout import S
from .step import participate
from .threads import Team, physical_cores
from .tiles import TILE_TOKENS
from .weights import NativeWeights, checked, pack_matrix

MAX_BATCH = layout.MAX_WANTED


@dataclass(frozen=True)
class Level:
    """How much of each layer is used: the first ``n_kv_head`` head groups and ``n_neuron`` neurons, per layer."""

    n_kv_head: tuple[int, ...]
    n_neuron: tuple[int, ...]


class NativeEngine:
    """Runs one model for up to ``max_batch`` sequences of at most ``max_tokens`` tokens each.

    `prefill` starts sequences, `decode` adds one token to each. Results are the same for any number of threads.
    One engine serves one caller at a time; several engines may run side by side.

    weights: packed weights (`NativeWeights.from_arrays`, `NativeWeights.load`).
    threads: number of threads, by default the physical cores.
    max_tokens: positions kept per sequence, by default the model's ``max_seq_len``.
    half_kv: keep keys and values in half precision; by default for quantised weights only.
    """

    def __init__(
        self,
        weights: NativeWeights,
        *,
        threads: int | None = None,
        max_batch: int = 1,
        max_tokens: int | None = None,
        half_kv: bool | None = None,
    ) -> None:
        spec = weights.spec
        if not 1 <= max_batch <= MAX_BATCH:
            raise InputError(f"max_batch must be between 1 and {MAX_BATCH}, not {max_batch}")
        max_tokens = spec.max_seq_len if max_tokens is None else max_tokens
        if not 1 <= max_tokens <= spec.max_seq_len:
            raise InputError(f"max_tokens must be between 1 and the model's {spec.max_seq_len}, not {max_tokens}")
        threads = physical_cores() if threads is None else threads
        if not 1 <= threads <= 62:
            raise InputError(f"threads must be between 1 and 62, not {threads}")
        self.spec: ModelSpec = spec
        self.weights = weights
        self.threads = threads
        self.max_batch = max_batch
        self.max_tokens = max_tokens
        self.lengths = np.zeros(max_batch, np.int64)  # tokens in each sequence so far
        self._half_kv = weights.precision != "fp32" if half_kv is None else half_kv
        self._buffers: dict[str, NDArray[Any]] = {}
        self._state = np.zeros(S.N_FIELD, np.int64)
        self._layers = np.zeros((spec.n_layer, layout.LAYER_FIELDS), np.int64)
        self._replaced: list[NDArray[Any]] = []
        self._team: Team | None = None
        self._allocate()
        self._describe_model()
        self.set_level()
        participate.compile((types.int64, types.int64, types.int64))
        self._team = Team(self._state.ctypes.data, threads, (self._state, self._layers, self._buffers, weights))

    def close(self) -> None:
        """Stop the worker threads. The engine can't be used afterwards."""
        if self._team is not None:
            self._team.close()
            self._team = None

    # --- running ----------------------------------------------------------------------------------------------------

    def prefill(self, prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Start one sequence per prompt (lengths may differ); logits of each next token, [batch, vocab_size]."""
        self.reset()
        if not 1 <= len(prompts) <= self.max_batch:
            raise InputError(f"{len(prompts)} prompts were given to an engine for 1 to {self.max_batch} sequences")
        tokens = [self._checked_tokens(p) for p in prompts]
        for i, prompt in enumerate(tokens):
            if prompt.size == 0:
                raise InputError(f"prompt {i} is empty; it needs at least one token")
            self._check_room(i, prompt.size)
        rows = np.concatenate([_rows(p, b, 0, wanted=p.size - 1) for b, p in enumerate(tokens)])
        out = np.empty((len(tokens), self.spec.vocab_size), np.float32)
        for start in range(0, len(rows), layout.MAX_ROWS):
            part = rows[start : start + layout.MAX_ROWS]
            done = part[part[:, layout.R_WANTED] == 1, layout.R_SEQUENCE]
            logits = self._run(part)
            out[done] = logits[: len(done)]
        self.lengths[: len(tokens)] = [p.size for p in tokens]
        return out

    def decode(self, tokens: Sequence[int], sequences: Sequence[int] | None = None) -> NDArray[np.float32]:
        """Add one token to each sequence (or to ``sequences`` only); logits of each next token, [batch, vocab_size]."""
        return self._decode(tokens, sequences).copy()

    def decode_greedy(self, tokens: Sequence[int], sequences: Sequence[int] | None = None) -> NDArray[np.int64]:
        """`decode`, returning each sequence's most probable next token instead of logits, [batch]."""
        n = len(self._decode(tokens, sequences))
        return self._buffers["best"][:n].copy()

    def score(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits at every position of one text, [len(tokens), vocab_size]; ends all sequences."""
        self.reset()
        text = self._checked_tokens(tokens)
        self._check_room(0, text.size)
        rows = _rows(text, 0, 0, wanted=None)
        out = np.empty((text.size, self.spec.vocab_size), np.float32)
        for start in range(0, text.size, layout.MAX_WANTED):
            part = rows[start : start + layout.MAX_WANTED]
            out[start : start + len(part)] = self._run(part)
        return out

    def reset(self) -> None:
        """Forget all sequences."""
        self.lengths[:] = 0

    def profile(self) -> dict[str, int]:
        """Time-stamp counts of the first thread per part of the passes since the last call (all 0 if not x86)."""
        counts: dict[str, int] = dict(zip(layout.PARTS, self._buffers["profile"].tolist(), strict=True))
        self._buffers["profile"][:] = 0
        return counts

    @property
    def kv_cache_bytes(self) -> int:
        """Bytes set aside for keys and values; memory is taken as sequences grow."""
        return self._buffers["cache"].nbytes

    @property
    def work_bytes(self) -> int:
        """Bytes of the areas that a pass works in: residual stream, projections' inputs, logits, private areas."""
        return sum(self._buffers[field.name].nbytes for field in S if field.name in self._buffers)

    # --- pruning levels ---------------------------------------------------------------------------------------------

    @property
    def level(self) -> Level:
        """Head groups and neurons in use per layer."""
        heads, neurons = self._layers[:, layout.L_KV_HEAD], self._layers[:, layout.L_NEURON]
        return Level(tuple(heads.tolist()), tuple(neurons.tolist()))

    def set_level(
        self,
        n_kv_head: Sequence[int] | None = None,
        n_neuron: Sequence[int] | None = None,
        replace: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> None:
        """Use only the first ``n_kv_head[i]`` head groups and ``n_neuron[i]`` neurons of layer i (default: all).

        Nothing is copied: weights stay where they are. ``replace`` gives output projections that belong to this level
        (compensated ones): ``layers.i.attn.out_proj.weight`` [C, heads in use * D], ``layers.i.mlp.down_proj.weight``
        [C, neurons in use], and their ``.bias``. All sequences end.
        """
        layers = self.spec.layers
        heads = [y.n_kv_head for y in layers] if n_kv_head is None else [int(k) for k in n_kv_head]
        neurons = [y.intermediate_size for y in layers] if n_neuron is None else [int(k) for k in n_neuron]
        if len(heads) != len(layers) or len(neurons) != len(layers):
            raise InputError(f"a level needs one count per layer, {len(layers)} of heads and of neurons")
        for i, y in enumerate(layers):
            if not (0 <= heads[i] <= y.n_kv_head and 0 <= neurons[i] <= y.intermediate_size):
                raise InputError(
                    f"layer {i} has {y.n_kv_head} head groups and {y.intermediate_size} neurons; "
                    f"{heads[i]} and {neurons[i]} can't be used"
                )
        replaced = self._packed_replacements(replace or {}, heads, neurons)
        self._replaced = [array for arrays in replaced.values() for array in arrays]
        for i, y in enumerate(layers):
            self._describe_layer(i, y.group_size * heads[i], heads[i], neurons[i], replaced)
        self.reset()

    def _packed_replacements(
        self, replace: Mapping[str, NDArray[np.float32]], heads: Sequence[int], neurons: Sequence[int]
    ) -> dict[str, list[NDArray[Any]]]:
        known: dict[str, tuple[int, ...]] = {}
        for i, y in enumerate(self.spec.layers):
            columns = {"attn.out_proj": heads[i] * y.group_size * y.head_dim, "mlp.down_proj": neurons[i]}
            for part, n in columns.items():
                known[f"layers.{i}.{part}.weight"] = (self.spec.n_embd, n)
                known[f"layers.{i}.{part}.bias"] = (self.spec.n_embd,)
        packed = {}
        for name in replace:
            if name not in known:
                raise InputError(f"a level can't replace {name}, only out_proj and down_proj weights and biases")
            array = checked(replace, name, known[name])
            if name.endswith(".bias"):
                full = np.zeros(packing.padded(array.size), np.float32)
                full[: array.size] = array
                packed[name] = [full]
            elif array.size:
                data, scale = pack_matrix(name, self.weights.precision, array)
                aligned = memory.buffer(data.nbytes)
                aligned[:] = data
                padded_scale = np.zeros(packing.padded(self.spec.n_embd), np.float32)
                if scale is not None:
                    padded_scale[: scale.size] = scale
                packed[name] = [aligned, padded_scale]
        return packed

    # --- checks -----------------------------------------------------------------------------------------------------

    def _checked_tokens(self, tokens: Sequence[int]) -> NDArray[np.int64]:
        found = np.asarray(tokens)
        if found.size == 0:
            return np.empty(0, np.int64)
        if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
            raise InputError("tokens must be a flat list of whole numbers")
        if found.min() < 0 or found.max() >= self.spec.vocab_size:
            raise InputError(f"token numbers must be between 0 and {self.spec.vocab_size - 1}")
        return found.astype(np.int64)

    def _check_room(self, sequence: int, n_more: int) -> None:
        length = int(self.lengths[sequence]) + n_more
        if length > self.max_tokens:
            raise InputError(f"sequence {sequence} would have {length} tokens, but the context holds {self.max_tokens}")

    # --- passes -----------------------------------------------------------------------------------------------------

    def _decode(self, tokens: Sequence[int], sequences: Sequence[int] | None) -> NDArray[np.float32]:
        found = self._checked_tokens(tokens)
        which = np.arange(found.size) if sequences is None else np.asarray(sequences, np.int64)
        if found.size == 0 or which.shape != found.shape or found.size > self.max_batch:
            raise InputError(f"{found.size} tokens for {which.size} sequences; give one each to 1 to {self.max_batch}")
        if which.min() < 0 or which.max() >= self.max_batch or (which.size > 1 and np.unique(which).size < which.size):
            raise InputError(f"sequences must be different numbers between 0 and {self.max_batch - 1}")
        for sequence in which.tolist():
            if self.lengths[sequence] == 0:
                raise InputError(f"sequence {sequence} has no prompt yet; call prefill first")
            self._check_room(sequence, 1)
        rows = np.empty((found.size, layout.ROW_FIELDS), np.int64)
        rows[:, layout.R_TOKEN], rows[:, layout.R_SEQUENCE] = found, which
        rows[:, layout.R_POSITION], rows[:, layout.R_WANTED] = self.lengths[which], 1
        logits = self._run(rows)
        self.lengths[which] += 1
        return logits

    def _run(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """One pass; logits of the wanted rows in order (a view that the next pass overwrites)."""
        if self._team is None:
            raise InputError("this engine is closed")
        self._buffers["rows"][: len(rows)] = rows
        self._state[S.N_ROW] = len(rows)
        self._team.run()
        return self._logits[: int(rows[:, layout.R_WANTED].sum()), : self.spec.vocab_size]

    # --- tables for the compiled step -------------------------------------------------------------------------------

    def _allocate(self) -> None:
        spec, n_row = self.spec, layout.MAX_ROWS
        n_input_row = max(n_row, self.threads)
        widest = max(
            [spec.n_embd]
            + [max(y.n_head * y.head_dim, y.intermediate_size) for y in spec.layers]
        )  # fmt: skip
        n_group = packing.padded(widest) // 32
        context = packing.padded(self.max_tokens)
        self._context = context
        # odd numbers of cache lines per row, so that the rows of a tile do not all map to the same cache set
        strides = {
            S.X_STRIDE: _odd_lines(4 * packing.padded(spec.n_embd)),
            S.QKV_STRIDE: _odd_lines(4 * packing.padded(max(y.qkv_rows for y in spec.layers))),
            S.ATTENTION_STRIDE: _odd_lines(4 * packing.padded(max(y.n_head * y.head_dim for y in spec.layers))),
            S.HIDDEN_STRIDE: _odd_lines(4 * packing.padded(max(y.intermediate_size for y in spec.layers))),
            S.INPUT_STRIDE: _odd_lines((4 if self._has_kind("fp32") else 2) * packing.padded(widest)),
            S.INPUT_SUM_STRIDE: _odd_lines(4 * n_group),
            S.LOGITS_STRIDE: _odd_lines(4 * packing.padded(spec.vocab_size)),
        }
        scores = max(TILE_TOKENS) * (context + 32) * 4
        private = _odd_lines(layout.P_SCORES + max(scores, 4 * packing.padded(spec.n_embd)))
        sizes = {
            S.X: strides[S.X_STRIDE] * n_row,
            S.QKV: strides[S.QKV_STRIDE] * n_row + 256,
            S.ATTENTION: strides[S.ATTENTION_STRIDE] * n_row,
            S.HIDDEN: strides[S.HIDDEN_STRIDE] * n_row,
            S.INPUT: strides[S.INPUT_STRIDE] * n_input_row,
            S.INPUT_SCALE: 4 * n_input_row + 64,
            S.INPUT_SUM: strides[S.INPUT_SUM_STRIDE] * n_input_row,
            S.LOGITS: strides[S.LOGITS_STRIDE] * layout.MAX_WANTED,
            S.BEST: 8 * layout.MAX_WANTED,
            S.PRIVATE: private * self.threads,
            S.SYNC: layout.Y_PARKED + 64 * self.threads,
            S.PLAN: 8 * layout.PLAN_INTS,
            S.PROFILE: 8 * len(layout.PARTS),
            S.ROWS: 8 * layout.ROW_FIELDS * n_row,
        }
        st = self._state
        for field, stride in strides.items():
            st[field] = stride
        st[S.PRIVATE_STRIDE] = private
        for field, size in sizes.items():
            self._buffers[field.name] = memory.buffer(size, huge=False)
            st[field] = self._buffers[field.name].ctypes.data
        self._buffers["rows"] = self._buffers["ROWS"].view(np.int64).reshape(-1, layout.ROW_FIELDS)
        self._buffers["best"] = self._buffers["BEST"].view(np.int64)
        self._buffers["profile"] = self._buffers["PROFILE"].view(np.int64)
        self._logits = self._buffers["LOGITS"].view(np.float32).reshape(-1, strides[S.LOGITS_STRIDE] // 4)
        self._allocate_cache(context)

    def _allocate_cache(self, context: int) -> None:
        size = 2 if self._half_kv else 4
        sizes = []
        for y in self.spec.layers:
            heads = self.max_batch * y.n_kv_head * context * size
            sizes += [_lines(heads * y.head_dim), _lines(heads * packing.padded(y.head_dim))]
        area = memory.buffer(sum(sizes), huge=False)  # filled bit by bit as sequences grow
        self._buffers["cache"] = area
        start = area.ctypes.data
        for i, y in enumerate(self.spec.layers):
            self._layers[i, layout.L_KEYS] = start
            self._layers[i, layout.L_VALUES] = start + sizes[2 * i]
            self._layers[i, layout.L_KV_STRIDE] = y.n_kv_head
            start += sizes[2 * i] + sizes[2 * i + 1]

    def _has_kind(self, kind: str) -> bool:
        return any(p.kind == kind for p in self.weights.parts.values())

    def _describe_model(self) -> None:
        spec, st = self.spec, self._state
        st[S.THREADS], st[S.N_LAYER], st[S.N_EMBD] = self.threads, spec.n_layer, spec.n_embd
        st[S.VOCAB], st[S.CONTEXT] = spec.vocab_size, self._context
        st[S.LAYERNORM], st[S.HALF_KV] = spec.norm == "layernorm", self._half_kv
        st[S.EPS_BITS] = np.float32(spec.norm_eps).view(np.int32)
        st[S.ACTIVATION] = layout.ACTIVATIONS.index(spec.activation)
        st[S.LAYERS] = self._layers.ctypes.data
        matrices = np.zeros((2, layout.MATRIX_FIELDS), np.int64)
        self._buffers["matrices"] = matrices
        matrices[0] = self._matrix("lm_head", spec.vocab_size, spec.n_embd)
        matrices[1] = matrices[0] if spec.tied_head else self._matrix("embed", spec.vocab_size, spec.n_embd)
        st[S.HEAD], st[S.EMBED] = matrices[0].ctypes.data, matrices[1].ctypes.data
        address = self.weights.address
        st[S.POSITIONS] = address("positions.weight")
        st[S.FINAL_NORM], st[S.FINAL_NORM_BIAS] = address("final_norm.weight"), address("final_norm.bias")
        for head_dim in {y.head_dim for y in spec.layers} if spec.rope is not None else ():
            assert spec.rope is not None
            self._buffers[f"cos{head_dim}"], self._buffers[f"sin{head_dim}"] = rope_tables(
                spec.rope, head_dim, self._context
            )

    def _matrix(self, name: str, n_row: int, n_column: int) -> list[int]:
        """Fields of a matrix of which the first ``n_row`` rows and ``n_column`` columns are used."""
        part = self.weights.parts.get(f"{name}.packed")
        bias = self.weights.address(f"{name}.bias")
        if part is None:
            return [layout.FP32, 0, 0, bias, 0, n_row, 0]
        stride = packing.block_bytes(part.kind, part.n_column)
        kind = packing.KINDS.index(part.kind)
        address = self.weights.address
        return [kind, address(f"{name}.packed"), address(f"{name}.scale"), bias, stride, n_row, n_column]

    def _describe_layer(
        self, i: int, n_head: int, n_kv_head: int, n_neuron: int, replaced: Mapping[str, list[NDArray[Any]]]
    ) -> None:
        spec, y, fields = self.spec, self.spec.layers[i], self._layers[i]
        fields[layout.L_HEAD], fields[layout.L_KV_HEAD] = n_head, n_kv_head
        fields[layout.L_HEAD_DIM], fields[layout.L_NEURON] = y.head_dim, n_neuron
        fields[layout.L_GATED] = spec.gated_mlp
        address, prefix = self.weights.address, f"layers.{i}"
        fields[layout.L_NORM1], fields[layout.L_NORM1_BIAS] = (
            address(f"{prefix}.attn_norm.weight"), address(f"{prefix}.attn_norm.bias"),
        )  # fmt: skip
        fields[layout.L_NORM2], fields[layout.L_NORM2_BIAS] = (
            address(f"{prefix}.mlp_norm.weight"), address(f"{prefix}.mlp_norm.bias"),
        )  # fmt: skip
        if spec.rope is not None:
            fields[layout.L_COS] = self._buffers[f"cos{y.head_dim}"].ctypes.data
            fields[layout.L_SIN] = self._buffers[f"sin{y.head_dim}"].ctypes.data
        qkv_rows = (n_head + 2 * n_kv_head) * y.head_dim
        c, n_value = spec.n_embd, n_head * y.head_dim
        # a projection without inputs still adds its bias; without either it is left out
        out_rows = c if n_value or spec.out_bias else 0
        down_rows = c if n_neuron or spec.down_bias else 0
        for start, name, n_row, n_column in (
            (layout.L_QKV, "attn.qkv_proj", qkv_rows, c),
            (layout.L_OUT, "attn.out_proj", out_rows, n_value),
            (layout.L_GATE, "mlp.gate_proj", n_neuron, c),
            (layout.L_UP, "mlp.up_proj", n_neuron, c),
            (layout.L_DOWN, "mlp.down_proj", down_rows, n_neuron),
        ):
            full = f"{prefix}.{name}"
            matrix = self._matrix(full, n_row, n_column)
            if f"{full}.weight" in replaced:
                data, scale = replaced[f"{full}.weight"]
                matrix[layout.WEIGHT], matrix[layout.SCALE] = data.ctypes.data, scale.ctypes.data
                matrix[layout.BLOCK_BYTES] = packing.block_bytes(self.weights.precision, n_column)
            if f"{full}.bias" in replaced:
                matrix[layout.BIAS] = replaced[f"{full}.bias"][0].ctypes.data
                matrix[layout.N_ROW] = c
            fields[start : start + layout.MATRIX_FIELDS] = matrix


def rope_tables(rope: RopeSpec, head_dim: int, n_position: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """cos and sin [positions, D / 2] of the rotary angles (Su et al. 2021; ``llama3`` scaling as in Llama 3.1)."""
    frequency = 1.0 / rope.theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if rope.type == "linear":
        frequency = frequency / rope.factor
    elif rope.type == "llama3":
        wavelength = 2 * math.pi / frequency
        low, high = rope.low_freq_factor, rope.high_freq_factor
        smooth = (rope.original_max_seq_len / wavelength - low) / (high - low)
        smooth = np.clip(smooth, 0.0, 1.0)
        frequency = (1 - smooth) * frequency / rope.factor + smooth * frequency
    angle = np.arange(n_position)[:, None] * frequency.astype(np.float32)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def _rows(tokens: NDArray[np.int64], sequence: int, first: int, wanted: int | None) -> NDArray[np.int64]:
    """Row table of consecutive tokens; logits are wanted at index ``wanted``, or everywhere."""
    rows = np.zeros((tokens.size, layout.ROW_FIELDS), np.int64)
    rows[:, layout.R_TOKEN], rows[:, layout.R_SEQUENCE] = tokens, sequence
    rows[:, layout.R_POSITION] = first + np.arange(tokens.size)
    rows[slice(None) if wanted is None else wanted, layout.R_WANTED] = 1
    return rows


def _lines(n_byte: int) -> int:
    return packing.padded(n_byte, 64)


def _odd_lines(n_byte: int) -> int:
    lines = -(-n_byte // 64)
    return 64 * (lines + 1 - lines % 2)

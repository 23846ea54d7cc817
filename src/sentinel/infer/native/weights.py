"""A model's weights as the step reads them: packed, in one buffer, from arrays or a file."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from sentinel.errors import InputError
from sentinel.models.features import INTEGRATION, PLAIN, ROPE_SCALINGS, SINGLE_BIASES, UNEQUAL, require_supported
from sentinel.models.spec import ModelSpec
from sentinel.progress import track

from .blocks import padded
from .packed_file import Collector, PackedTensor, PackedTensors, read_packed, write_packed
from .precisions import PRECISIONS, Precision

SUPPORTS = (
    PLAIN | ROPE_SCALINGS | UNEQUAL | SINGLE_BIASES | INTEGRATION | {"no positions"}
    | {"rotary positions in some layers only", "rotary positions that differ between layers"}
)  # fmt: skip
ENDS = ("embed", "lm_head", "baseline.embed")
# Of one layer after the other, those of the baseline last: Gram matrices of what its matrices read, by their names.
Grams = Iterator[Mapping[str, NDArray]]


class NativeWeights(PackedTensors):
    """Packed weights of a whole model.

    ``spec`` are the sizes, ``precision`` that of the layers' matrices. The matrix ``lm_head`` is the embedding too when
    the head is tied.
    """

    def __init__(
        self, spec: ModelSpec, precision: Precision, parts: dict[str, PackedTensor], data: NDArray[np.uint8]
    ) -> None:
        super().__init__(parts, data)
        self.spec = spec
        self.precision: Precision = precision

    # --- from arrays ------------------------------------------------------------------------------------------------

    @classmethod
    def from_arrays(
        cls,
        spec: ModelSpec,
        arrays: Mapping[str, NDArray],
        precision: Precision,
        *,
        head_precision: Precision | None = None,
        grams: Grams | None = None,
    ) -> NativeWeights:
        """Pack the float32 arrays of a model (canonical names, [outputs, inputs]).

        ``head_precision`` is that of embeddings, LM head and fusions: that of the rest by default, but int8 where it is
        int4.
        ``grams`` gives, layer after layer and for every matrix of it (as ``layers.0.mlp.up_proj``), the sum [K, K] of
        x x^T over its inputs x on some text; with it int4 loses less, and others do not ask. An output projection's
        inputs are the heads' outputs before their gates.
        """
        if precision not in PRECISIONS:
            raise InputError(f"precision {precision!r} is not one of fp32, int8 and int4")
        require_supported(spec, SUPPORTS, "the native engine (levels 2 and 3)")
        head = head_precision or PRECISIONS[precision].ENDS
        tensors = Collector()
        matrices = matrices_of(spec)
        packed = track(matrices, f"Packing weights in {precision}", len(matrices))
        for layer, its in itertools.groupby(packed, lambda matrix: layer_of(matrix[0])):
            gram_of = next_grams(grams, precision) if layer else {}
            for name, n_row, n_column, bias in its:
                kind = head if name in ENDS or name.startswith("integration.") else precision
                source = "embed" if name == "lm_head" and spec.tied_head else name
                if n_row and n_column:
                    weight = checked(arrays, f"{source}.weight", (n_row, n_column))
                    columns = _gates(spec, arrays, name)
                    weight = weight if columns is None else weight * columns
                    add_matrix(tensors, name, kind, weight, gram_of.get(name))
                if bias and n_row:
                    gate = _fusion_gate(arrays, name)
                    vector = checked(arrays, f"{name}.bias", (n_row,))
                    tensors.add_vector(f"{name}.bias", vector if gate is None else vector * gate)
        for name, shape in vectors_of(spec):
            tensors.add_vector(name, checked(arrays, name, shape).reshape(-1))
        return cls(spec, precision, *tensors.joined())

    # --- files ------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write a file that `load` reads."""
        write_packed(path, self, {"precision": self.precision, "spec": self.spec.to_json()})

    @classmethod
    def load(cls, path: str | Path, *, verify: bool = True) -> NativeWeights:
        """Read a file that `save` wrote; ``verify`` compares every tensor's checksum.

        Raises `InputError` that names the file for one that was cut short or altered, or whose tensors do not fit its
        model spec.
        """
        path = Path(path)
        tensors, metadata = read_packed(path, verify=verify)
        if metadata.get("precision") not in PRECISIONS or "spec" not in metadata:
            raise InputError(f"{path} holds no whole model")
        precision = cast(Precision, metadata["precision"])
        weights = cls(ModelSpec.from_json(metadata["spec"]), precision, tensors.parts, tensors.data)
        _check_parts(weights, path)
        return weights


def matrices_of(spec: ModelSpec) -> list[tuple[str, int, int, bool]]:
    """Name, outputs, inputs and whether there is a bias, of every matrix, empty ones included: layer by layer, then fusions
    and the baseline's layers, then the head."""
    c = spec.n_embd
    found = [] if spec.tied_head else [("embed", spec.vocab_size, c, False)]
    for i, layer in enumerate(spec.layers):
        f = layer.intermediate_size
        attention, mlp = layer.attention, layer.mlp
        found.append((f"layers.{i}.attn.qkv_proj", layer.qkv_rows, c, attention.qkv_bias))
        found.append((f"layers.{i}.attn.out_proj", c, layer.n_head * layer.head_dim, attention.out_bias))
        if mlp.gated:
            found.append((f"layers.{i}.mlp.gate_proj", f, c, mlp.up_bias))
        found.append((f"layers.{i}.mlp.up_proj", f, c, mlp.up_bias))
        found.append((f"layers.{i}.mlp.down_proj", c, f, mlp.down_bias))
    found += _integration_matrices(spec)
    found.append(("lm_head", spec.vocab_size, c, False))
    return found


def _integration_matrices(spec: ModelSpec) -> list[tuple[str, int, int, bool]]:
    """`matrices_of` the fusions and of the baseline, whose LM head does not exist."""
    c = spec.n_embd
    found: list[tuple[str, int, int, bool]] = []
    rank = None if spec.integration is None else spec.integration.rank
    for name in _fusions(spec):
        if rank is not None:
            found.append((f"{name}.down", rank, 2 * c, False))
        found.append((f"{name}.up", c, 2 * c if rank is None else rank, True))
    baseline = None if spec.integration is None else spec.integration.baseline
    if baseline is not None:
        found.append(("baseline.embed", baseline.vocab_size, c, False))
        found += [(f"baseline.{name}", n, k, bias) for name, n, k, bias in matrices_of(baseline) if name not in ENDS]
    return found


def _fusions(spec: ModelSpec) -> list[str]:
    """Names of all fusions."""
    wanted = spec.integration
    kinds = [] if wanted is None else ["skips"] * wanted.skips + ["adapters"] * (wanted.baseline is not None)
    return [f"integration.{kind}.{i}" for kind in kinds for i in range(spec.n_layer // 2)]


def vectors_of(spec: ModelSpec) -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of everything that is not a matrix."""
    names = [f"layers.{i}.{part}" for i in range(spec.n_layer) for part in ("attn_norm", "mlp_norm")] + ["final_norm"]
    found: list[tuple[str, tuple[int, ...]]] = []
    for name in names:
        found.append((f"{name}.weight", (spec.n_embd,)))
        if spec.norm.kind == "layernorm":
            found.append((f"{name}.bias", (spec.n_embd,)))
    if spec.learned_positions:
        found.append(("positions.weight", (spec.max_seq_len, spec.n_embd)))
    for name in (f"{fusion}.{norm}" for fusion in _fusions(spec) for norm in ("other_norm", "norm")):
        found.append((f"{name}.weight", (spec.n_embd,)))
        if spec.norm.kind == "layernorm":
            found.append((f"{name}.bias", (spec.n_embd,)))
    baseline = None if spec.integration is None else spec.integration.baseline
    if baseline is not None:
        found += [(f"baseline.{name}", shape) for name, shape in vectors_of(baseline) if "final_norm" not in name]
    return found


def layer_of(name: str) -> str:
    """The layer, as ``baseline.layers.3``, that a matrix belongs to; empty for one outside the layers."""
    place, _, rest = name.partition("layers.")
    return f"{place}layers.{rest.partition('.')[0]}" if rest else ""


def next_grams(grams: Grams | None, precision: Precision) -> Mapping[str, NDArray]:
    """The next layer's Gram matrices; none, and nothing is computed, where the precision makes no use of them."""
    return {} if grams is None or not PRECISIONS[precision].CALIBRATED else next(grams)


def add_matrix(
    tensors: Collector, name: str, kind: str, weight: NDArray[np.float32], gram: NDArray | None = None
) -> None:
    """Pack ``weight`` [N, K] as ``kind`` and collect it; ``gram`` [K, K] is the Gram matrix of its inputs."""
    storage = PRECISIONS[kind]
    stored, scale = storage.quantise(weight, gram)
    tensors.add_matrix(name, kind, storage.pack(stored), scale, (weight.shape[0], weight.shape[1]))


def checked(arrays: Mapping[str, NDArray], name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The array ``name`` as float32, if it is there, has that shape and only finite values."""
    if name not in arrays:
        raise InputError(f"the weights lack the tensor {name}")
    array = np.asarray(arrays[name], np.float32)
    if array.shape != shape:
        raise InputError(f"tensor {name} has shape {array.shape}, but the model spec says {shape}")
    if not np.isfinite(array).all():
        raise InputError(f"tensor {name} has values that are not finite (NaN or infinity)")
    return array


def _gates(spec: ModelSpec, arrays: Mapping[str, NDArray], name: str) -> NDArray[np.float32] | None:
    """Factors of the columns of ``name``: an output projection's head gates or a fusion's gate, if the model has any."""
    if not name.endswith(".out_proj"):
        return _fusion_gate(arrays, name)
    gate = name.removesuffix("out_proj") + "gate"
    if name.startswith("baseline."):
        assert spec.integration is not None and spec.integration.baseline is not None
        spec = spec.integration.baseline
    layer = spec.layers[int(name.removeprefix("baseline.").split(".")[1])]
    if gate not in arrays or layer.n_head == 0:
        return None
    return np.repeat(checked(arrays, gate, (layer.n_head,)), layer.head_dim)


def _fusion_gate(arrays: Mapping[str, NDArray], name: str) -> NDArray[np.float32] | None:
    """The gate of a fusion, for its last matrix; None for every other matrix."""
    if not (name.startswith("integration.") and name.endswith(".up")):
        return None
    return checked(arrays, name.removesuffix("up") + "gate", (1,))


def _check_parts(weights: NativeWeights, path: Path) -> None:
    """Refuse a file whose tensors do not fit its own model spec: kernels trust the sizes."""
    for name, n_row, n_column, bias in matrices_of(weights.spec):
        if n_row and n_column:
            weights.require_matrix(path, name, n_row, n_column)
        if bias and n_row:
            weights.require(path, f"{name}.bias", 4 * padded(n_row))
    for name, shape in vectors_of(weights.spec):
        weights.require(path, name, 4 * padded(int(np.prod(shape))))

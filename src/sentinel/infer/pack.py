"""From a decoder, or from weights that are read tensor by tensor, to those that the native engine reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sentinel.formats.stored import StoredWeights
from sentinel.infer.native import NativeWeights, PackedWidth, Precision
from sentinel.infer.native.weights import Grams, packed_size
from sentinel.models.decoder import Decoder
from sentinel.models.rows import Rows
from sentinel.models.spec import ModelSpec
from sentinel.models.tensors import pruned_tensors
from sentinel.progress import say

Source: TypeAlias = "Decoder | StoredWeights"
LARGE = 1_000_000_000  # bytes; from here on it is said what packing takes
PROGRAM = 500_000_000  # bytes of the interpreter, PyTorch and what is read at once


def pack(source: Source, precision: Precision, grams: Grams | None = None) -> NativeWeights:
    """The native engine's weights of a model, whole, whatever width is set.

    ``grams``: Gram matrices of the inputs of every projection, layer after layer, for int4 (`gram_matrices.input_grams`).
    """
    return NativeWeights.from_arrays(source.spec, _Arrays(source.whole_state()), precision, grams=grams)


def pack_width(source: Source, precision: Precision, grams: Grams | None = None) -> PackedWidth:
    """The width that is set, with the projections that were re-solved for it."""
    whole = source.whole_state()
    gates = {t.name: whole[t.name] for t in pruned_tensors(source.spec) if t.name.endswith(".gate") and t.name in whole}
    own = {} if source.current is None else source.current.projections
    return PackedWidth.from_arrays(source.spec, source.in_use, _Arrays({**gates, **own}), precision, grams)


def tell_memory(spec: ModelSpec, precision: Precision, dense: bool = False) -> None:
    """Say how much memory packing takes at most, where that is large; with ``dense`` beside the weights in fp32."""
    needed = packed_size(spec, precision) + PROGRAM + dense * 4 * spec.parameter_count()
    if needed > LARGE:
        say(f"packing in {precision} takes about {needed / 1e9:.1f} GB of memory")


@dataclass(frozen=True)
class _Array:
    """Rows as fp32 arrays, made as they are asked for: no second copy of the whole."""

    rows: Rows

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.rows.shape)

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        return self.rows[rows].detach().float().cpu().numpy()


class _Arrays(Mapping[str, _Array]):
    def __init__(self, state: Mapping[str, Rows]) -> None:
        self._state = state

    def __getitem__(self, name: str) -> _Array:
        return _Array(self._state[name])

    def __contains__(self, name: object) -> bool:
        return name in self._state

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)

"""From a decoder to the weights that the native engine reads, whole and at a stored width."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sentinel.infer.native import NativeWeights, PackedWidth, Precision
from sentinel.infer.native.weights import Grams
from sentinel.models.decoder import Decoder
from sentinel.models.tensors import with_scales_folded


def pack(decoder: Decoder, precision: Precision, grams: Grams | None = None) -> NativeWeights:
    """The native engine's weights of a decoder, whole, whatever width is set.

    ``grams``: Gram matrices of the inputs of every projection, layer after layer, for int4 (`gram_matrices.input_grams`).
    """
    return NativeWeights.from_arrays(decoder.spec, _Arrays(decoder.whole_state()), precision, grams=grams)


def pack_width(decoder: Decoder, precision: Precision, grams: Grams | None = None) -> PackedWidth:
    """The width that is set, with the projections that were re-solved for it."""
    gates = {name: tensor for name, tensor in decoder.state_dict().items() if name.endswith(".gate")}
    own = {} if decoder.current is None else decoder.current.projections
    folded = with_scales_folded(_Arrays({**gates, **own}), decoder.spec)
    return PackedWidth.from_arrays(decoder.spec, decoder.in_use, folded, precision, grams)


class _Arrays(Mapping[str, NDArray[np.float32]]):
    """The tensors of ``state`` as arrays, each made when it is asked for: no second copy of the whole in fp32."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = state

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self._state[name].detach().float().cpu().numpy()

    def __contains__(self, name: object) -> bool:
        return name in self._state

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)

"""From a decoder to the weights that the native engine reads, whole and at a stored width."""

from __future__ import annotations

from collections.abc import Mapping

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
    return NativeWeights.from_arrays(decoder.spec, _arrays(decoder.whole_state()), precision, grams=grams)


def pack_width(decoder: Decoder, precision: Precision, grams: Grams | None = None) -> PackedWidth:
    """The width that is set, with the projections that were re-solved for it."""
    gates = {name: tensor for name, tensor in decoder.state_dict().items() if name.endswith(".gate")}
    own = {} if decoder.current is None else decoder.current.projections
    folded = with_scales_folded(_arrays({**gates, **own}), decoder.spec)
    return PackedWidth.from_arrays(decoder.spec, decoder.in_use, folded, precision, grams)


def _arrays(state: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    return {name: tensor.detach().float().cpu().numpy() for name, tensor in state.items()}

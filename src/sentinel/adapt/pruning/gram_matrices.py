"""Gram matrices, and those of the inputs of every projection, layer after layer, which quantisation needs.

Shape letters as in the decoder: T tokens, C width, H * D outputs of the heads, F neurons.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sentinel.adapt.pruning.residual_stream import HALVES, Half, Stream, masks_of, positions_of
from sentinel.models.decoder import Decoder
from sentinel.models.integration import Borrowing

GRAM_BLOCKS = 4


def gram_of(z: Tensor) -> Tensor:
    """``z.T @ z`` for ``z`` [N, K]: blocks of columns, so that little more than the lower half is computed."""
    size = z.shape[1]
    width = max(1, -(-size // GRAM_BLOCKS))
    gram = z.new_empty(size, size)
    for start in range(0, size, width):
        columns, rest = slice(start, start + width), slice(start + width, None)
        gram[start:, columns] = z[:, start:].T @ z[:, columns]
        gram[columns, rest] = gram[rest, columns].T
    return gram


def input_grams(decoder: Decoder, windows: Tensor) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Of one layer after the other: sums over calibration tokens of x x^T [K, K], x being the inputs of a projection.

    A layer's are by the projections' names (``layers.3.mlp.up_proj``); after the model's own layers come those of its
    baseline (``baseline.layers.3...``). What is given is emptied when the next layer is asked for: only one layer's
    matrices are kept, 4 bytes x (C^2 or 2 C^2 + (H D)^2 + F^2), and the residual stream of all windows, 4 C bytes a
    token, with skips half as many times as there are layers. Inputs are those of the unquantised model; an output
    projection's are the heads' outputs before their gates.
    """
    stream = Stream(decoder, windows)
    borrowings = _borrowings(decoder, windows, stream)
    for index in range(decoder.spec.n_layer):
        found = _of_layer(stream, borrowings, index)
        yield found
        found.clear()
    if decoder.baseline is not None:
        for found in input_grams(decoder.baseline, windows):
            given = {f"baseline.{name}": gram for name, gram in found.items()}
            yield given
            given.clear()


@torch.no_grad()
def _of_layer(stream: Stream, borrowings: list[Borrowing], index: int) -> dict[str, NDArray[np.float32]]:
    """All Gram matrices of one layer; the stream moves on to the next."""
    found: dict[str, NDArray[np.float32]] = {}
    if borrowings:
        for batch, borrowing in zip(stream.batches(), borrowings, strict=True):
            given = stream.states[batch].clone()  # it keeps some of what it is given
            stream.states[batch] = borrowing.enter(index, given)
    for half in HALVES:
        entering, leaving = _NAMES[half]
        first = _sum(stream.read(index, half, batch) for batch in stream.batches())
        last = _sum(stream.inputs(index, half, batch) for batch in stream.batches())
        if half == "attn":
            attention = stream.block(index, half).attn
            last = _before_gates(last, attention.gate, attention.layer.head_dim)
        found.update(dict.fromkeys(entering, first.cpu().numpy()))
        found[leaving] = last.cpu().numpy()
        stream.advance(index, half)
    return {f"layers.{index}.{name}": gram for name, gram in found.items()}


def _sum(batches: Iterator[Tensor]) -> Tensor:
    """The Gram matrix of all batches [B, T, K] together."""
    total: Tensor | None = None
    for x in batches:
        part = gram_of(x.flatten(0, 1))
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def _borrowings(decoder: Decoder, windows: Tensor, stream: Stream) -> list[Borrowing]:
    """What each batch of windows borrows; nothing for a plain model."""
    if decoder.integration is None:
        return []
    positions = positions_of(windows, decoder)
    made = []
    for batch in stream.batches():
        borrowing = Borrowing(
            decoder.integration, decoder.baseline, decoder.spec.n_layer, None, masks_of(windows, decoder)
        )
        borrowing.start(windows[batch].to(decoder.device), positions, windows.shape[1])
        made.append(borrowing)
    return made


_NAMES: dict[Half, tuple[tuple[str, ...], str]] = {
    "attn": (("attn.qkv_proj",), "attn.out_proj"),
    "mlp": (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"),
}


def _before_gates(gram: Tensor, gate: Tensor, head_dim: int) -> Tensor:
    """The Gram matrix of head outputs whose gates were applied, without them; 0 where a gate is 0."""
    factor = gate[: gram.shape[0] // head_dim].repeat_interleave(head_dim)
    inverse = torch.where(factor != 0, 1 / factor, 0.0)
    return gram * inverse[:, None] * inverse

"""Gram matrices, and those of the inputs of every projection, one layer at a time, which quantisation needs.

Shape letters as in the decoder: T tokens, C width, H * D outputs of the heads, F neurons.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sentinel.adapt.pruning.residual_stream import HALVES, Half, Stream, positions_of
from sentinel.errors import InputError
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


class InputGrams:
    """Sums over calibration tokens of x x^T [K, K] in float32, x being the inputs of a projection.

    Called with a projection's name (``layers.3.mlp.up_proj``), layers in ascending order: only one layer's matrices
    are kept, 4 bytes x (2 C^2 + (H D)^2 + F^2), and the residual stream of all windows, 4 C bytes a token, with skips
    half as many times as there are layers. Inputs are those of the unquantised model; an output projection's are the
    heads' outputs before their gates. The layers of a baseline (``baseline.layers.3...``) come after the model's own.
    """

    def __init__(self, decoder: Decoder, windows: Tensor) -> None:
        self._decoder = decoder
        self._stream = Stream(decoder, windows)
        self._borrowings = _borrowings(decoder, windows, self._stream)
        self._baseline = None if decoder.baseline is None else InputGrams(decoder.baseline, windows)
        self._index = -1
        self._found: dict[str, Tensor] = {}

    def __call__(self, name: str) -> NDArray[np.float32] | None:
        """The Gram matrix of that projection's inputs; None for a matrix outside the layers."""
        if self._baseline is not None and name.startswith("baseline."):
            return self._baseline(name.removeprefix("baseline."))
        if not name.startswith("layers."):
            return None
        index = int(name.split(".")[1])
        if index < self._index:
            raise InputError(f"Gram matrices of layer {index} are asked for after those of layer {self._index}")
        while self._index < index:
            self._index += 1
            self._found = self._layer(self._index)
        return self._found[name.split(".", 2)[2]].cpu().numpy()

    @torch.no_grad()
    def _layer(self, index: int) -> dict[str, Tensor]:
        """All Gram matrices of one layer; the stream moves on to the next."""
        block, found = self._decoder.blocks[index], {}
        if self._borrowings:
            for batch, borrowing in zip(self._stream.batches(), self._borrowings, strict=True):
                states = self._stream.states[batch]
                states[:] = borrowing.enter(index, states.clone())  # it keeps some of what it is given
        norms = {"attn": block.attn_norm, "mlp": block.mlp_norm}
        for half in HALVES:
            entering, leaving = _NAMES[half]
            first = self._gram(norms[half](self._stream.states[batch]) for batch in self._stream.batches())
            found.update(dict.fromkeys(entering, first))
            last = self._gram(self._stream.inputs(index, half, batch) for batch in self._stream.batches())
            found[leaving] = _before_gates(last, block.attn.gate, block.attn.layer.head_dim) if half == "attn" else last
            self._stream.advance(index, half)
        return found

    def _gram(self, batches: Iterator[Tensor]) -> Tensor:
        total: Tensor | None = None
        for x in batches:
            rows = x.flatten(0, 1)
            part = gram_of(rows)
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
        borrowing = Borrowing(decoder.integration, decoder.baseline, decoder.spec.n_layer, None, None)
        borrowing.start(windows[batch].to(decoder.device), positions)
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

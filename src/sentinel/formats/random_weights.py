"""Random weights of a model's shape, drawn as they are asked for."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from sentinel.formats.stored import StoredWeights
from sentinel.models.decoder import Decoder
from sentinel.models.families.weights import Stored
from sentinel.models.rows import Unread
from sentinel.models.spec import ModelSpec
from sentinel.models.tensors import tensors_of

_AT_ONCE = 1 << 22  # numbers that are drawn to be passed over


def random_weights(spec: ModelSpec, seed: int, dtype: torch.dtype = torch.float32) -> StoredWeights:
    """Weights of that shape: matrices drawn from N(0, 0.02), norms of 1 and biases of 0, as GPT-2 starts.

    In another ``dtype`` the numbers are those of fp32, rounded.
    """
    tensors = list(tensors_of(spec))
    matrices = [tensor for tensor in tensors if len(tensor.shape) > 1]
    draws = _Draws(seed, [(tensor.shape[0], tensor.shape[1]) for tensor in matrices])
    number = {tensor.name: index for index, tensor in enumerate(matrices)}
    state: Stored = {}
    for tensor in tensors:
        if tensor.name in number:
            read = functools.partial(draws.rows, number[tensor.name], dtype)
            state[tensor.name] = Unread(tensor.shape, dtype, read)
        else:
            value = 0.0 if tensor.name.endswith("bias") else 1.0
            state[tensor.name] = torch.full(tensor.shape, value, dtype=dtype, device="cpu")
    return StoredWeights(spec, state, "random weights")


def random_decoder(spec: ModelSpec, seed: int, dtype: torch.dtype = torch.float32) -> Decoder:
    """All of `random_weights`, as a decoder."""
    return random_weights(spec, seed, dtype).decoder()


class _Draws:
    """Matrices [N, K] that are drawn one after the other from one generator, and read in any order: what lies before is
    drawn and passed over, which costs nothing to whoever reads in the order of the model.

    PyTorch draws sixteen numbers together, so that rows are read from a multiple of 16 on.
    """

    def __init__(self, seed: int, shapes: list[tuple[int, int]]) -> None:
        self._shapes = shapes
        self._generator = torch.Generator("cpu").manual_seed(seed)
        first = self._generator.get_state()
        # The state before each matrix. Kept in one piece: small ones between matrices would hold the heap apart, so that
        # it grows by what was freed.
        self._starts, self._reached = first.new_empty(len(shapes) + 1, len(first)), 0
        self._starts[0] = first
        self._place = (0, 0)  # the matrix and the row that are next

    def rows(self, index: int, dtype: torch.dtype, rows: slice) -> Tensor:
        """Those rows of matrix ``index``."""
        n_row, n_column = self._shapes[index]
        start, stop, _ = rows.indices(n_row)
        if stop <= start:
            return torch.empty(0, n_column, dtype=dtype, device="cpu")
        self._go_to(index, start)
        return self._draw(stop - start).to(dtype)

    def _go_to(self, index: int, row: int) -> None:
        if self._place[0] != index or self._place[1] > row:
            start = min(index, self._reached)
            self._generator.set_state(self._starts[start].clone())
            self._place = (start, 0)
        while self._place[0] < index:
            self._pass_to(self._shapes[self._place[0]][0])
        self._pass_to(row)

    def _pass_to(self, row: int) -> None:
        """Draw the rows of the matrix before ``row``."""
        index, at = self._place
        step = max(16, _AT_ONCE // max(1, self._shapes[index][1]) // 16 * 16)
        for start in range(at, row, step):
            self._draw(min(step, row - start))

    def _draw(self, count: int) -> Tensor:
        """The next rows of the matrix that is next; behind its last row is the next matrix."""
        index, row = self._place
        n_row, n_column = self._shapes[index]
        found = torch.empty(count, n_column, device="cpu").normal_(0.0, 0.02, generator=self._generator)
        self._place = (index, row + count)
        if row + count == n_row:
            self._place = (index + 1, 0)
            if index == self._reached:
                self._reached += 1
                self._starts[self._reached] = self._generator.get_state()
        return found

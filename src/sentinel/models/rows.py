"""Tensors that are read when they are asked for, some rows at a time: a model that is packed need not be held."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sentinel.errors import InputError

ALL = slice(None)


class Rows(Protocol):
    """A tensor by its rows: one that is held, or one that is read (`Unread`)."""

    @property
    def shape(self) -> Sequence[int]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def __getitem__(self, rows: slice, /) -> Tensor: ...


@dataclass(frozen=True)
class Unread:
    """A tensor of that shape and type, of which ``read`` gives some rows, each time anew and in memory of their own."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[slice], Tensor]

    def __getitem__(self, rows: slice) -> Tensor:
        return self.read(rows)


def changed(rows: Rows, change: Callable[[Tensor], Tensor], dtype: torch.dtype | None = None) -> Unread:
    """``rows`` after ``change``, which works row by row and may make another type of them."""
    return Unread(tuple(rows.shape), dtype or rows.dtype, lambda part: change(rows[part]))


def finite(rows: Rows, name: str, source: object) -> Unread:
    """``rows``, refused with an `InputError` that names ``source`` where they hold NaN or infinity: all results would."""

    def check(tensor: Tensor) -> Tensor:
        require_finite(tensor, name, source)
        return tensor

    return changed(rows, check)


def require_finite(tensor: Tensor, name: str, source: object) -> None:
    """Raise `InputError` for a tensor with NaN or infinity."""
    # The sum needs no memory, and is finite unless a value is not or the sum itself overflows.
    if not math.isfinite(tensor.sum()) and not tensor.isfinite().all():
        raise InputError(f"{source}: tensor {name!r} holds NaN or infinity; mend the weights")


def held(state: Mapping[str, Rows]) -> dict[str, Tensor]:
    """All tensors of ``state``, read one after the other."""
    return {name: rows[ALL] for name, rows in state.items()}

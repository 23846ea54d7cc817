"""Where the states of a calibration text are kept: in memory, or in a file of which one batch at a time is in memory."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sentinel.errors import InputError

BATCH = 8  # windows at once: bounds the memory of activations, whatever the length of the text


class States(Protocol):
    """fp32 states [windows, T, C], read and written by slices of windows: a tensor, or a file."""

    def __len__(self) -> int: ...

    def __getitem__(self, windows: slice, /) -> Tensor: ...

    def __setitem__(self, windows: slice, values: Tensor, /) -> None: ...


class Spilled:
    """States in a file that has no name, so that it is gone when nobody holds it any more, however the process ends.

    They are read and written, not mapped: mapped pages would count as memory. What was never written is undefined.
    """

    def __init__(self, shape: tuple[int, int, int], folder: Path) -> None:
        self._shape = shape
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it lives as long as the states

    def __len__(self) -> int:
        return self._shape[0]

    def __getitem__(self, windows: slice, /) -> Tensor:
        start, stop, _ = windows.indices(len(self))
        found = np.empty((max(0, stop - start), *self._shape[1:]), np.float32)
        self._file.seek(self._place(start))
        if self._file.readinto(found.reshape(-1).view(np.uint8).data) != found.nbytes:
            raise InputError("a file of states was cut short; free some space beside the output")
        return torch.from_numpy(found)

    def __setitem__(self, windows: slice, values: Tensor, /) -> None:
        self._file.seek(self._place(windows.indices(len(self))[0]))
        self._file.write(values.contiguous().numpy().reshape(-1).view(np.uint8).data)

    def _place(self, window: int) -> int:
        return 4 * window * math.prod(self._shape[1:])


@dataclass(frozen=True)
class Room:
    """Where states are kept: in files of ``folder``, or in memory where that is None. ``batch`` windows are computed at
    once."""

    folder: Path | None = None
    batch: int = BATCH

    def states(self, shape: tuple[int, int, int], device: torch.device) -> States:
        """Room for states of that shape, in memory where ``device`` is."""
        return torch.empty(shape, device=device) if self.folder is None else Spilled(shape, self.folder)


IN_MEMORY = Room()

"""A safetensors file that is written tensor by tensor, and some rows at a time: no more of it is in memory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self


class PiecewiseFile:
    """fp32 tensors of the given ``shapes`` by name, which are put in any order; rows of one in their order."""

    def __init__(self, path: Path, shapes: Mapping[str, Sequence[int]]) -> None:
        described, end = {}, 0
        self._next: dict[str, int] = {}
        self._last: dict[str, int] = {}
        for name, shape in shapes.items():
            start, end = end, end + 4 * math.prod(shape)
            described[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
            self._next[name], self._last[name] = start, end
        header = json.dumps({"__metadata__": {"format": "pt"}, **described}).encode()
        header += b" " * (-len(header) % 8)
        self._begin = 8 + len(header)
        self._file = path.open("wb")
        self._file.write(len(header).to_bytes(8, "little") + header)

    def put(self, name: str, rows: Tensor) -> None:
        """The next rows of a tensor, or all of it."""
        values: NDArray[np.float32] = rows.detach().float().contiguous().cpu().flatten().numpy()
        assert self._next[name] + values.nbytes <= self._last[name], name
        self._file.seek(self._begin + self._next[name])
        self._file.write(values.data)
        self._next[name] += values.nbytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._file.close()
        assert kind is not None or self._next == self._last, "a tensor was not written whole"

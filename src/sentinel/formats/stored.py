"""The weights of a model that is stored somewhere: read tensor by tensor, whole into a decoder, or to be packed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sentinel.errors import InputError
from sentinel.models.decoder import Decoder
from sentinel.models.elastic import WHOLE, StoredWidth, require_stored, width_key
from sentinel.models.families.weights import Stored
from sentinel.models.rows import ALL, Rows, finite, held
from sentinel.models.spec import ModelSpec
from sentinel.models.tensors import tensors_of
from sentinel.models.width import Width


@dataclass(frozen=True)
class WidthFile:
    """A stored width whose re-solved projections are still to be read, in ``dtype`` or as they are."""

    heads: float
    neurons: float
    width: Width
    projections: Mapping[str, Rows]
    dtype: torch.dtype | None = None

    def read(self) -> StoredWidth:
        """The width with its projections in memory."""
        tensors = held(self.projections)
        if self.dtype is not None:
            tensors = {name: tensor.to(self.dtype) for name, tensor in tensors.items()}
        return StoredWidth(self.heads, self.neurons, self.width, tensors)


class StoredWeights:
    """Weights that are read when they are asked for; ``source`` is where they are, for errors.

    A width is set as in a decoder, and packed alike. Raises `InputError` for tensors that are not those of ``spec``.
    """

    def __init__(self, spec: ModelSpec, state: Stored, source: object, widths: Sequence[WidthFile] = ()) -> None:
        shapes = {tensor.name: tensor.shape for tensor in tensors_of(spec)}
        wrong = sorted(set(shapes) ^ set(state)) or sorted(n for n in shapes if shapes[n] != tuple(state[n].shape))
        if wrong:
            raise InputError(f"{source}: tensor {wrong[0]!r} does not fit the specification; the checkpoint is damaged")
        self.spec = spec
        self.widths = sorted((w for w in widths if _key(w) != WHOLE), key=_key)
        self.current: StoredWidth | None = None
        self._state = {name: finite(rows, name, source) for name, rows in state.items()}

    @property
    def in_use(self) -> Width:
        """How much of each layer takes part."""
        return Width.full(self.spec) if self.current is None else self.current.width

    def set_width(self, heads: float, neurons: float = 0.0) -> None:
        """Switch to a stored width, which is read; raises `InputError` for one that is not stored."""
        key = width_key(heads, neurons)
        require_stored(key, [_key(width) for width in self.widths])
        self.current = next((width.read() for width in self.widths if _key(width) == key), None)

    def whole_state(self) -> Mapping[str, Rows]:
        """State of the whole, whatever width is set."""
        return self._state

    def decoder(self) -> Decoder:
        """All of it as a decoder that is whole."""
        decoder = Decoder.empty(self.spec)
        state: dict[str, Tensor] = {name: rows[ALL] for name, rows in self._state.items()}
        decoder.load_state_dict(state, assign=True)
        decoder.store_widths(width.read() for width in self.widths)
        return decoder.eval()


def _key(width: WidthFile) -> tuple[float, float]:
    return width_key(width.heads, width.neurons)

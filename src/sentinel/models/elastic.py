"""One set of weights, several widths, switched at run time.

Heads and neurons are stored most important first, so that a width is a count per layer. The projections that were
re-solved for a stored width are kept with it; everything else is shared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from typing_extensions import Self

from sentinel.errors import InputError
from sentinel.models.parts.block import Block
from sentinel.models.parts.linear import require_plain
from sentinel.models.spec import ModelSpec
from sentinel.models.width import Width

# The tensors, by their place in a block, that a stored width may have of its own.
WIDTH_TENSORS = ("attn.out_proj.weight", "attn.out_proj.bias", "mlp.down_proj.weight", "mlp.down_proj.bias")
WHOLE = (0.0, 0.0)


@dataclass(frozen=True)
class StoredWidth:
    """Share of heads and neurons removed, what is used per layer, and re-solved projections by name.

    ``projections`` is empty for a width that was not compensated; it then uses the prefixes of the whole ones.
    """

    heads: float
    neurons: float
    width: Width
    projections: dict[str, Tensor]

    @property
    def key(self) -> tuple[float, float]:
        return width_key(self.heads, self.neurons)


def width_key(heads: float, neurons: float) -> tuple[float, float]:
    """The name of a stored width: its ratios, rounded as they are compared."""
    return (round(heads, 4), round(neurons, 4))


def require_stored(key: tuple[float, float], stored: Iterable[tuple[float, float]]) -> None:
    """Raise `InputError` that names the ``stored`` widths unless ``key`` is one of them or the whole."""
    known = sorted(stored)
    if key == WHOLE or key in known:
        return
    if not known:
        raise InputError("this model stores no widths; make some with 'sentinel prune --elastic'")
    told = ", ".join(f"{h:g}/{n:g}" for h, n in (WHOLE, *known))
    raise InputError(f"width {key[0]:g} of heads and {key[1]:g} of neurons is not stored; stored are {told}")


class Elastic(nn.Module):
    """A model in layers that may store widths; without any it is a plain one, and always whole.

    ``current`` is the stored width that is set, None for the whole.
    """

    spec: ModelSpec
    layers: nn.ModuleList

    def __init__(self) -> None:
        super().__init__()
        self.current: StoredWidth | None = None
        self._stored: dict[tuple[float, float], StoredWidth] = {}
        self._whole: dict[str, Tensor | None] = {}  # what a stored width that is set has taken the place of

    @property
    def blocks(self) -> list[Block]:
        """The layers, typed."""
        return cast("list[Block]", list(self.layers))

    @property
    def widths(self) -> list[StoredWidth]:
        """The stored widths, least pruned first, without the whole."""
        return sorted(self._stored.values(), key=lambda stored: stored.key)

    @property
    def width_bytes(self) -> int:
        """Bytes of all re-solved projections."""
        return sum(t.nbytes for stored in self._stored.values() for t in stored.projections.values())

    @property
    def in_use(self) -> Width:
        """How much of each layer takes part."""
        blocks = self.blocks
        return Width(tuple(b.attn.active_groups for b in blocks), tuple(b.mlp.active_neurons for b in blocks))

    def use(self, width: Width) -> None:
        """Let the first key/value groups and neurons of each layer take part that ``width`` says.

        Nothing is copied or forgotten, so that a later call can go up as well as down. Cached positions of another
        width are of no use to the new one. Raises `InputError` for counts that a layer does not have.
        """
        width.check(self.spec)
        for block, groups, neurons in zip(self.blocks, width.groups, width.neurons, strict=True):
            block.use(groups, neurons)

    def store_widths(self, widths: Iterable[StoredWidth]) -> None:
        """Let these widths, beside the whole, be those that `set_width` knows. The whole is set."""
        self.set_width(0.0)
        self._stored = {stored.key: stored for stored in widths if stored.key != WHOLE}

    def set_width(self, heads: float, neurons: float = 0.0) -> None:
        """Switch to a stored width, up or down. Nothing is copied; raises `InputError` for one that is not stored."""
        key = width_key(heads, neurons)
        require_stored(key, self._stored)
        stored = self._stored.get(key)
        self.use(Width.full(self.spec) if stored is None else stored.width)
        if stored is self.current:
            return
        for _, module, _ in self._places():
            require_plain(module)
        if self.current is None:
            self._whole = {name: getattr(module, part) for name, module, part in self._places()}
        for name, module, part in self._places():
            tensor = stored.projections.get(name) if stored and stored.projections else self._whole[name]
            if isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter):
                tensor = nn.Parameter(tensor, requires_grad=False)
            setattr(module, part, tensor)
        self.current = stored
        self._whole = {} if stored is None else self._whole

    def whole_state(self) -> dict[str, Tensor]:
        """State of the whole, whatever width is set."""
        state = self.state_dict()
        for name, tensor in self._whole.items():
            state.pop(name, None)
            if tensor is not None:
                state[name] = tensor.detach()
        return state

    def own_projections(self, stored: StoredWidth) -> dict[str, nn.Parameter]:
        """Weights and biases that belong to a stored width alone, as parameters that it uses from here on.

        One that was stored without projections gets copies of its part of the whole ones, and biases. The whole must
        be set.
        """
        made: dict[str, nn.Parameter] = {}
        counts = zip(self.blocks, stored.width.groups, stored.width.neurons, strict=True)
        for index, (block, groups, neurons) in enumerate(counts):
            columns = groups * block.attn.layer.group_size * block.attn.layer.head_dim
            for name, projection, kept in (
                (f"layers.{index}.attn.out_proj", block.attn.out_proj, columns),
                (f"layers.{index}.mlp.down_proj", block.mlp.down_proj, neurons),
            ):
                weight, bias = (stored.projections.get(f"{name}.{part}") for part in ("weight", "bias"))
                if weight is None:
                    weight, bias = projection.weight.detach()[:, :kept].clone(), projection.bias
                bias = weight.new_zeros(len(weight)) if bias is None else bias.detach().clone()
                made[f"{name}.weight"], made[f"{name}.bias"] = nn.Parameter(weight.detach()), nn.Parameter(bias)
        owned: dict[str, Tensor] = dict(made)
        self._stored[stored.key] = dataclasses.replace(stored, projections=owned)
        return made

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert what `torch.nn.Module.to` does not see too: the projections that are not in use."""
        super()._apply(fn, recurse)  # pyright: ignore[reportUnknownMemberType]
        kept = (t for stored in self._stored.values() for t in stored.projections.values())
        for tensor in (*kept, *self._whole.values()):
            if tensor is not None:
                tensor.data = fn(tensor.data)
        return self

    def _places(self) -> Iterator[tuple[str, nn.Module, str]]:
        for index, block in enumerate(self.blocks):
            for place in WIDTH_TENSORS:
                half, projection, part = place.split(".")
                yield f"layers.{index}.{place}", getattr(getattr(block, half), projection), part

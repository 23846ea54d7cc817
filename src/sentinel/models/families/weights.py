"""Invertible tables of weight names and shapes between a Hugging Face family and the decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sentinel.errors import InputError
from sentinel.models.rows import ALL, Rows, Unread, changed
from sentinel.models.spec import AttentionSpec, LayerSpec, ModelSpec
from sentinel.models.tensors import tensors_of, with_gates_folded

State = dict[str, Tensor]
Stored = dict[str, Rows]  # tensors that may not be read yet


def fuse_qkv(query: Tensor, key: Tensor, value: Tensor, layer: LayerSpec | AttentionSpec) -> Tensor:
    """Rows of separate projections [heads * D, ...] in group order: each group's queries, then its key and value."""
    groups, rest = layer.n_kv_head, query.shape[1:]
    parts = [t.reshape(groups, -1, *rest) if groups else t.reshape(0, 0, *rest) for t in (query, key, value)]
    return torch.cat(parts, dim=1).reshape(-1, *rest) if groups else query.new_zeros(0, *rest)


def split_qkv(fused: Tensor, layer: LayerSpec | AttentionSpec) -> tuple[Tensor, Tensor, Tensor]:
    """Inverse of `fuse_qkv`."""
    dim, rest = layer.head_dim, fused.shape[1:]
    if not layer.n_kv_head:
        return fused, fused, fused
    grouped = fused.reshape(layer.n_kv_head, -1, *rest)
    query, key, value = torch.split(grouped, [layer.group_size * dim, dim, dim], dim=1)
    return query.reshape(-1, *rest), key.reshape(-1, *rest), value.reshape(-1, *rest)


Tensors = Sequence[Tensor]


@dataclass(frozen=True)
class Rule:
    """Tensors of the decoder and the tensors of the family that they are made of. ``{i}`` stands for the layer."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    read: Callable[[Tensors, LayerSpec], Tensors]
    write: Callable[[Tensors, LayerSpec], Tensors]


def _as_it_is(tensors: Tensors, _: LayerSpec) -> Tensors:
    return tensors


def same(ours: str, theirs: str) -> Rule:
    """The tensor as it is."""
    return Rule((ours,), (theirs,), _as_it_is, _as_it_is)


def transposed(ours: str, theirs: str) -> Rule:
    """A weight that the family stores as [in, out]."""
    return Rule((ours,), (theirs,), lambda t, _: (t[0].T.contiguous(),), lambda t, _: (t[0].T.contiguous(),))


def plus_one(ours: str, theirs: str) -> Rule:
    """The weight of a norm that multiplies by 1 + what the family stores; in fp32, since a half would round the sum."""
    return Rule((ours,), (theirs,), lambda t, _: (t[0].float() + 1,), lambda t, _: (t[0] - 1,))


def after_rows(count: int, ours: str, theirs: str) -> Rule:
    """A table whose first ``count`` rows nobody looks up."""

    def write(tensors: Tensors, _: LayerSpec) -> Tensors:
        return (torch.cat((tensors[0].new_zeros(count, tensors[0].shape[1]), tensors[0])),)

    return Rule((ours,), (theirs,), lambda t, _: (t[0][count:].contiguous(),), write)


def stacked(ours: tuple[str, ...], theirs: str) -> Rule:
    """Equal tensors of ours, one below the other."""
    return Rule(ours, (theirs,), lambda t, _: t[0].chunk(len(ours)), lambda t, _: (torch.cat(tuple(t)),))


def separate_qkv(ours: str, query: str, key: str, value: str, *, pairs: int = 0) -> Rule:
    """Three tensors of the family, fused in group order.

    With ``pairs`` the family rotates neighbouring numbers of the first 2 * pairs of every head; here they are the halves.
    """

    def read(tensors: Tensors, layer: LayerSpec) -> Tensors:
        query, key, value = tensors
        query, key = (halves_of_pairs(t, layer.head_dim, pairs) for t in (query, key))
        return (fuse_qkv(query, key, value, layer),)

    def write(tensors: Tensors, layer: LayerSpec) -> Tensors:
        query, key, value = split_qkv(tensors[0], layer)
        return *(pairs_of_halves(t, layer.head_dim, pairs) for t in (query, key)), value

    return Rule((ours,), (query, key, value), read, write)


def halves_of_pairs(rows: Tensor, head_dim: int, pairs: int) -> Tensor:
    """Rows of queries or keys [heads * D, ...]; of the first 2 * pairs of a head, x0 y0 x1 y1.. becomes x0 x1.. y0 y1.."""
    if not pairs:
        return rows
    heads = rows.reshape(-1, head_dim, *rows.shape[1:])
    turned = heads[:, : 2 * pairs].reshape(len(heads), pairs, 2, *rows.shape[1:]).transpose(1, 2).flatten(1, 2)
    return torch.cat((turned, heads[:, 2 * pairs :]), 1).reshape(rows.shape)


def pairs_of_halves(rows: Tensor, head_dim: int, pairs: int) -> Tensor:
    """Inverse of `halves_of_pairs`."""
    if not pairs:
        return rows
    heads = rows.reshape(-1, head_dim, *rows.shape[1:])
    turned = heads[:, : 2 * pairs].reshape(len(heads), 2, pairs, *rows.shape[1:]).transpose(1, 2).flatten(1, 2)
    return torch.cat((turned, heads[:, 2 * pairs :]), 1).reshape(rows.shape)


def stacked_qkv(ours: str, theirs: str, *, transpose: bool = False) -> Rule:
    """One tensor with all queries, then all keys, then all values; with ``transpose`` a weight is stored as [in, out]."""

    def read(tensors: Tensors, layer: LayerSpec) -> Tensors:
        rows = tensors[0].T if transpose else tensors[0]
        sizes = [heads * layer.head_dim for heads in (layer.n_head, layer.n_kv_head, layer.n_kv_head)]
        query, key, value = torch.split(rows, sizes)
        return (fuse_qkv(query, key, value, layer),)

    def write(tensors: Tensors, layer: LayerSpec) -> Tensors:
        rows = torch.cat(split_qkv(tensors[0], layer))
        return (rows.T.contiguous() if transpose else rows,)

    return Rule((ours,), (theirs,), read, write)


@dataclass(frozen=True)
class _Placed:
    """A rule for one layer."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    rule: Rule
    index: int
    layer: LayerSpec


def _expanded(rules: Sequence[Rule], spec: ModelSpec) -> list[_Placed]:
    out: list[_Placed] = []
    for rule in rules:
        for i in range(spec.n_layer if "{i}" in rule.ours[0] else 1):
            ours, theirs = (tuple(name.format(i=i) for name in names) for names in (rule.ours, rule.theirs))
            out.append(_Placed(ours, theirs, rule, i, spec.layers[i]))
    return out


HEAD = "lm_head.weight"


def settle_head(spec: ModelSpec, theirs: Stored, embedding: str) -> tuple[ModelSpec, Stored]:
    """What the stored tensors say of a tied head, as Hugging Face takes it.

    A copy of the embedding is left out; a head that differs is kept, and the model is not tied; a head alone is both.
    """
    if not spec.tied_head or HEAD not in theirs:
        return spec, theirs
    if embedding in theirs and not _equal(theirs[HEAD], theirs[embedding]):
        return replace(spec, tied_head=False), theirs
    rest = {name: tensor for name, tensor in theirs.items() if name != HEAD}
    return spec, {embedding: theirs[HEAD], **rest}


def _equal(one: Rows, other: Rows) -> bool:
    """True for the same numbers; compared some rows at a time, for embeddings are large."""
    if tuple(one.shape) != tuple(other.shape):
        return False
    starts = range(0, one.shape[0], _ROWS_COMPARED)
    return all(torch.equal(one[s : s + _ROWS_COMPARED], other[s : s + _ROWS_COMPARED]) for s in starts)


_ROWS_COMPARED = 4096


def read_weights(rules: Sequence[Rule], spec: ModelSpec, theirs: Stored, dtype: torch.dtype | None = None) -> Stored:
    """The decoder's state for the family's ``theirs``, in ``dtype`` or as it is stored; gates are 1.

    What is not read yet is read and converted, tensor by tensor, when it is asked for. Raises `InputError` that names the
    first missing or unexpected tensor, and, at the latest when it is read, one of a wrong shape.
    """
    expanded = _expanded(rules, spec)
    wanted = {name for placed in expanded for name in placed.theirs}
    if missing := sorted(wanted - set(theirs)):
        raise InputError(f"the weights lack {len(missing)} tensors that the config asks for, first {missing[0]!r}")
    if unexpected := sorted(set(theirs) - wanted):
        raise InputError(
            f"the weights hold {len(unexpected)} tensors that the config does not explain, first {unexpected[0]!r}"
        )
    shapes = {tensor.name: tensor.shape for tensor in tensors_of(spec)}
    ours: Stored = {}
    for placed in expanded:
        sources = [theirs[name] for name in placed.theirs]
        for place, name in enumerate(placed.ours):
            ours[name] = _converted(placed, place, sources, shapes[name], dtype)
    for i, layer in enumerate(spec.layers):
        ours[f"layers.{i}.attn.gate"] = torch.ones(
            layer.n_head, dtype=dtype or ours["embed.weight"].dtype, device="cpu"
        )
    return ours


def _converted(
    placed: _Placed, place: int, sources: Sequence[Rows], shape: tuple[int, ...], dtype: torch.dtype | None
) -> Rows:
    """One of the tensors that a rule makes of ``sources``. Of one that stays as it is, single rows can be read."""
    first, name = placed.theirs[0], placed.ours[place]

    def require(found: Sequence[int]) -> None:
        if tuple(found) != shape:
            raise InputError(f"weight {first!r} gives {list(found)} for {name}, but the config asks for {list(shape)}")

    def in_type(tensor: Tensor) -> Tensor:
        return tensor if dtype is None else tensor.to(dtype)

    if placed.rule.read is _as_it_is:
        require(sources[0].shape)
        return changed(sources[0], in_type, dtype)

    def read(rows: slice) -> Tensor:
        try:
            tensors = placed.rule.read([in_type(source[ALL]) for source in sources], placed.layer)
        except (RuntimeError, IndexError) as error:
            raise InputError(f"weight {first!r} has a shape that the config does not explain") from error
        require(tensors[place].shape)
        part = tensors[place][rows]
        return part.clone() if part.untyped_storage().nbytes() > part.nbytes else part  # or the rest would be held too

    return Unread(shape, dtype or sources[0].dtype, read)


@dataclass(frozen=True)
class Written:
    """A tensor of the family: its name is ``template`` with the layer's number for ``{i}``."""

    template: str
    index: int
    layer: LayerSpec
    tensor: Tensor

    @property
    def name(self) -> str:
        return self.template.format(i=self.index)


def written(rules: Sequence[Rule], spec: ModelSpec, ours: State) -> Iterator[Written]:
    """Inverse of `read_weights`, tensor by tensor; gates are folded into the output projections."""
    folded = with_gates_folded(ours, spec)
    for placed in _expanded(rules, spec):
        tensors = placed.rule.write([folded[name] for name in placed.ours], placed.layer)
        for template, tensor in zip(placed.rule.theirs, tensors, strict=True):
            yield Written(template, placed.index, placed.layer, tensor)


def write_weights(rules: Sequence[Rule], spec: ModelSpec, ours: State) -> State:
    """All of `written`, by name."""
    return {tensor.name: tensor.tensor for tensor in written(rules, spec, ours)}

"""Invertible tables of weight names and shapes between a Hugging Face family and the decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sentinel.errors import InputError
from sentinel.models.spec import LayerSpec, ModelSpec
from sentinel.models.tensors import tensors_of, with_gates_folded

State = dict[str, Tensor]


def fuse_qkv(query: Tensor, key: Tensor, value: Tensor, layer: LayerSpec) -> Tensor:
    """Rows of separate projections [heads * D, ...] in group order: each group's queries, then its key and value."""
    groups, rest = layer.n_kv_head, query.shape[1:]
    parts = [t.reshape(groups, -1, *rest) if groups else t.reshape(0, 0, *rest) for t in (query, key, value)]
    return torch.cat(parts, dim=1).reshape(-1, *rest) if groups else query.new_zeros(0, *rest)


def split_qkv(fused: Tensor, layer: LayerSpec) -> tuple[Tensor, Tensor, Tensor]:
    """Inverse of `fuse_qkv`."""
    dim, rest = layer.head_dim, fused.shape[1:]
    if not layer.n_kv_head:
        return fused, fused, fused
    grouped = fused.reshape(layer.n_kv_head, -1, *rest)
    query, key, value = grouped.split((layer.group_size * dim, dim, dim), dim=1)
    return query.reshape(-1, *rest), key.reshape(-1, *rest), value.reshape(-1, *rest)


@dataclass(frozen=True)
class Rule:
    """One tensor of the decoder and the tensors of the family that it is made of. ``{i}`` stands for the layer."""

    ours: str
    theirs: tuple[str, ...]
    read: Callable[[Sequence[Tensor], LayerSpec], Tensor]
    write: Callable[[Tensor, LayerSpec], Sequence[Tensor]]


def same(ours: str, theirs: str) -> Rule:
    """The tensor as it is."""
    return Rule(ours, (theirs,), lambda t, _: t[0], lambda t, _: (t,))


def transposed(ours: str, theirs: str) -> Rule:
    """A weight that the family stores as [in, out]."""
    return Rule(ours, (theirs,), lambda t, _: t[0].T.contiguous(), lambda t, _: (t.T.contiguous(),))


def separate_qkv(ours: str, query: str, key: str, value: str) -> Rule:
    """Three tensors of the family, fused in group order."""
    return Rule(ours, (query, key, value), lambda t, layer: fuse_qkv(t[0], t[1], t[2], layer), split_qkv)


def stacked_qkv(ours: str, theirs: str, *, transpose: bool) -> Rule:
    """One tensor with all queries, then all keys, then all values; a weight is stored as [in, out]."""

    def read(tensors: Sequence[Tensor], layer: LayerSpec) -> Tensor:
        stacked = tensors[0].T if transpose else tensors[0]
        query, key, value = stacked.chunk(3)
        return fuse_qkv(query, key, value, layer)

    def write(tensor: Tensor, layer: LayerSpec) -> Sequence[Tensor]:
        stacked = torch.cat(split_qkv(tensor, layer))
        return (stacked.T.contiguous() if transpose else stacked,)

    return Rule(ours, (theirs,), read, write)


def _expanded(rules: Sequence[Rule], spec: ModelSpec) -> list[tuple[str, tuple[str, ...], Rule, LayerSpec]]:
    out: list[tuple[str, tuple[str, ...], Rule, LayerSpec]] = []
    for rule in rules:
        for i in range(spec.n_layer if "{i}" in rule.ours else 1):
            theirs = tuple(name.format(i=i) for name in rule.theirs)
            out.append((rule.ours.format(i=i), theirs, rule, spec.layers[i]))
    return out


HEAD = "lm_head.weight"


def settle_head(spec: ModelSpec, theirs: State, embedding: str) -> tuple[ModelSpec, State]:
    """What the stored tensors say of a tied head, as Hugging Face takes it.

    A copy of the embedding is left out; a head that differs is kept, and the model is not tied; a head alone is both.
    """
    if not spec.tied_head or HEAD not in theirs:
        return spec, theirs
    if embedding in theirs and not torch.equal(theirs[HEAD], theirs[embedding]):
        return replace(spec, tied_head=False), theirs
    rest = {name: tensor for name, tensor in theirs.items() if name != HEAD}
    return spec, {embedding: theirs[HEAD], **rest}


def read_weights(rules: Sequence[Rule], spec: ModelSpec, theirs: State) -> State:
    """The decoder's state for the family's ``theirs``; gates are 1.

    Raises `InputError` that names the first missing, unexpected or wrongly shaped tensor.
    """
    expanded = _expanded(rules, spec)
    wanted = {name for _, names, _, _ in expanded for name in names}
    if missing := sorted(wanted - set(theirs)):
        raise InputError(f"the weights lack {len(missing)} tensors that the config asks for, first {missing[0]!r}")
    if unexpected := sorted(set(theirs) - wanted):
        raise InputError(
            f"the weights hold {len(unexpected)} tensors that the config does not explain, first {unexpected[0]!r}"
        )
    shapes = {tensor.name: tensor.shape for tensor in tensors_of(spec)}
    ours: State = {}
    for name, names, rule, layer in expanded:
        try:
            tensor = rule.read([theirs[n] for n in names], layer)
        except (RuntimeError, IndexError) as error:
            raise InputError(f"weight {names[0]!r} has a shape that the config does not explain") from error
        if tensor.shape != shapes[name]:
            raise InputError(
                f"weight {names[0]!r} gives {list(tensor.shape)} for {name}, but the config asks for "
                f"{list(shapes[name])}"
            )
        ours[name] = tensor
    for i, layer in enumerate(spec.layers):
        ours[f"layers.{i}.attn.gate"] = torch.ones(layer.n_head, device=ours["embed.weight"].device)
    return ours


def write_weights(rules: Sequence[Rule], spec: ModelSpec, ours: State) -> State:
    """Inverse of `read_weights`; gates are folded into the output projections."""
    theirs: State = {}
    folded = with_gates_folded(ours, spec)
    for name, names, rule, layer in _expanded(rules, spec):
        theirs.update(zip(names, rule.write(folded[name], layer), strict=True))
    return theirs

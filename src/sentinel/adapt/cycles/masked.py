"""A model whose head groups can be parked and come back: all weights are kept, and a mask says which take part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sentinel.adapt.pruning.compact import select
from sentinel.models.decoder import Decoder
from sentinel.models.tensors import put_back
from sentinel.models.width import Kept


class Head(NamedTuple):
    """A head group, by its numbers in the unpruned model."""

    layer: int
    group: int


class MaskedModel:
    """Weights of the unpruned shape in ``decoder``, and ``kept``: per layer the groups that take part, ascending.

    Output projections have biases, so that compensation fits in. Training works on the compacted `student` of what
    takes part, which computes the same as the masked model at the price of a small one, and `take_back` brings its
    weights home. A parked head keeps the weights with which it was parked; only its gate is that of the dense model again.
    """

    def __init__(self, dense: Decoder) -> None:
        spec = dense.spec
        self.kept = [list(range(layer.n_kv_head)) for layer in spec.layers]
        self._neurons = [list(range(layer.intermediate_size)) for layer in spec.layers]
        self.decoder = select(dense, Kept(self.kept, self._neurons), biases=True)
        self._dense_gates = [block.attn.gate.detach().clone() for block in self.decoder.blocks]

    @property
    def counts(self) -> list[int]:
        """Groups that take part, per layer."""
        return [len(groups) for groups in self.kept]

    @property
    def parked(self) -> list[Head]:
        """Groups that do not take part."""
        return [
            Head(index, group)
            for index, layer in enumerate(self.decoder.spec.layers)
            for group in range(layer.n_kv_head)
            if group not in self.kept[index]
        ]

    def gates(self) -> list[Tensor]:
        """The mask [n_kv_head] of each layer: 1 for what takes part."""
        masks = [torch.zeros(layer.n_kv_head, device=self.decoder.device) for layer in self.decoder.spec.layers]
        for mask, groups in zip(masks, self.kept, strict=True):
            mask[groups] = 1.0
        return masks

    def park(self, heads: Iterable[Head]) -> None:
        """Let those heads take part no more."""
        for head in heads:
            self.kept[head.layer].remove(head.group)
            groups = self.decoder.spec.layers[head.layer].n_kv_head
            gate, dense = self.decoder.blocks[head.layer].attn.gate.data, self._dense_gates[head.layer]
            gate.view(groups, -1)[head.group] = dense.view(groups, -1)[head.group]

    def regrow(self, heads: Iterable[Head]) -> None:
        """Let those parked heads take part again."""
        for head in heads:
            self.kept[head.layer] = sorted([*self.kept[head.layer], head.group])

    def student(self) -> Decoder:
        """A compacted copy of what takes part, its groups in the order of ``kept``."""
        return select(self.decoder, Kept(self.kept, self._neurons))

    @torch.no_grad()
    def take_back(self, student: Decoder, groups: Sequence[Sequence[int]]) -> None:
        """Copy the weights of ``student``, which holds those ``groups`` of each layer in that order."""
        put_back(self.decoder.state_dict(), self.decoder.spec, Kept(groups, self._neurons), student.state_dict())

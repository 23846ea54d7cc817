"""A decoder of which one half of one layer is in memory: models that are larger than it are run layer by layer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor
from typing_extensions import Self

from sentinel.adapt.pruning.half_layer import half_tensors
from sentinel.formats.stored import StoredWeights
from sentinel.models.decoder import Decoder
from sentinel.models.parts.block import Block, Half
from sentinel.models.rows import ALL
from sentinel.models.spec import ModelSpec

PIECE = 1 << 22  # numbers of the embedding that are read at once


class HalfHeld(Decoder):
    """What is computed layer by layer needs no more than this: embeddings by their rows, and the half layer that was asked
    for last, in fp32. All else is on the meta device. Only whole plain models are run so.

    A model with other halves than those of the weights that it takes its embeddings from is `put` each of them.
    """

    _weights: StoredWeights
    _own: bool
    _held: tuple[int, Half] | None = None

    @classmethod
    def of(cls, stored: StoredWeights, spec: ModelSpec | None = None) -> Self:
        """The model that is ``stored``; with a ``spec`` one of that shape, whose halves are put in."""
        made = cls.empty(spec or stored.spec)
        made._weights, made._own = stored, spec is None
        return made.eval()

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def embedded(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """As in a decoder: the rows of ``tokens`` [B, T] are picked out of the pieces that are read."""
        state, flat = self._weights.whole_state(), tokens.flatten()
        rows, found = state["embed.weight"], torch.empty(tokens.numel(), self.spec.n_embd)
        step = max(1, PIECE // self.spec.n_embd)
        for start in range(0, self.spec.vocab_size, step):
            (at,) = ((flat >= start) & (flat < start + step)).nonzero(as_tuple=True)
            if len(at):
                found[at] = rows[start : start + step].float()[flat[at] - start]
        if self.positions is not None:
            self._fill(self.positions, {"weight": state["positions.weight"][: self.spec.max_seq_len].float()})
        return super().embedded(found.view(*tokens.shape, -1), positions)

    def block(self, index: int, half: Half) -> Block:
        if self._held != (index, half):
            assert self._own, "a half layer is put in before it is used"
            self.put(index, half, self.read(index, half))
        return self.blocks[index]

    def read(self, index: int, half: Half) -> dict[str, Tensor]:
        """The tensors of a half layer as they are stored, in fp32, by their names in the decoder."""
        self._let_go()
        state = self._weights.whole_state()
        return {
            tensor.name: state[tensor.name][ALL].float() for tensor in half_tensors(self._weights.spec, index, half)
        }

    def put(self, index: int, half: Half, state: Mapping[str, Tensor]) -> None:
        """Hold that half layer, and let go of the one before."""
        self._let_go()
        local = {name.removeprefix(f"layers.{index}."): tensor for name, tensor in state.items()}
        if self.spec.block.shared_norm and half == "mlp":
            whole = self._weights.whole_state()
            norms = (name for name in whole if name.startswith(f"layers.{index}.attn_norm."))
            local |= {name.removeprefix(f"layers.{index}."): whole[name][ALL].float() for name in norms}
        self._fill(self.blocks[index], local)
        self._held = (index, half)

    def taken(self) -> dict[str, Tensor]:
        """The tensors of the half layer that is held, by their names in the decoder; they are held no more."""
        assert self._held is not None
        index, half = self._held
        state = {
            name: tensor.detach() for name, tensor in self.blocks[index].state_dict(prefix=f"layers.{index}.").items()
        }
        self._let_go()
        return {tensor.name: state[tensor.name] for tensor in half_tensors(self.spec, index, half)}

    def _let_go(self) -> None:
        if self._held is not None:
            self.blocks[self._held[0]].to("meta")
            self._held = None

    @staticmethod
    def _fill(module: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "for .*: copying from a non-meta parameter")
            module.load_state_dict(state, strict=False, assign=True)

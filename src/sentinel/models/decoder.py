"""One decoder for every family: embeddings, blocks, head. The layers are in `parts`.

Shape letters: B batch, T new tokens, S cached and new positions, C width (n_embd), V vocab_size, D head_dim.
"""

from __future__ import annotations

import dataclasses
import warnings

import torch
from torch import Tensor, nn
from typing_extensions import Self

from sentinel.errors import InputError
from sentinel.models.elastic import Elastic
from sentinel.models.features import EVERY_GROUP, require_supported
from sentinel.models.integration import Borrowing, Integration
from sentinel.models.parts.attention import Attention, Cache, Trace, WindowedCache
from sentinel.models.parts.block import Block, Half
from sentinel.models.parts.head import Head
from sentinel.models.parts.linear import Projection, linear
from sentinel.models.parts.mlp import MLP
from sentinel.models.parts.norms import make_norm
from sentinel.models.positions import Masks, Rotary, positions_and_mask, rotary_of
from sentinel.models.record import Record
from sentinel.models.spec import ModelSpec
from sentinel.models.tensors import prefix

__all__ = ["MLP", "Attention", "Block", "Cache", "Decoder", "Rotary"]

SUPPORTS = EVERY_GROUP


class Decoder(Elastic):
    """Decoder-only language model of any supported family, trainable, with unequal layers allowed.

    ``integration`` and the frozen ``baseline`` are there where the specification asks for them. ``record`` says how
    the model was made; surgery passes it on, and `save_checkpoint` writes it. Raises `InputError` for a specification that
    needs what is not in `SUPPORTS`.
    """

    def __init__(self, spec: ModelSpec) -> None:
        require_supported(spec, SUPPORTS, "the decoder")
        super().__init__()
        self.spec = spec
        self.record = Record()
        self.embed = nn.Embedding(spec.vocab_size, spec.n_embd)
        self.positions = nn.Embedding(spec.max_seq_len, spec.n_embd) if spec.learned_positions else None
        self.layers = nn.ModuleList(Block(spec, layer) for layer in spec.layers)
        self.final_norm = make_norm(spec)
        self.lm_head = None if spec.tied_head else Projection(spec.n_embd, spec.vocab_size, bias=spec.head_bias)
        wanted = spec.integration
        self.integration = None if wanted is None else Integration(spec, wanted)
        unpruned = None if wanted is None else wanted.baseline
        self.baseline = None if unpruned is None else Decoder(unpruned).requires_grad_(False)

    @classmethod
    def empty(cls, spec: ModelSpec) -> Self:
        """A decoder without storage (meta device), to be filled with ``load_state_dict(..., assign=True)``."""
        with torch.device("meta"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # layers without heads
            return cls(spec)

    @property
    def head(self) -> Head:
        """The LM head as a function of normalised states; its matrix is the embedding where they are tied."""
        weight, bias = (self.embed.weight, None) if self.lm_head is None else (self.lm_head.weight, self.lm_head.bias)
        return Head(weight, bias, self.spec.logit_scale, self.spec.logit_soft_cap)

    @property
    def cache_spec(self) -> ModelSpec:
        """Specification whose layers size the KV cache; those of the baseline follow the model's own."""
        return self.spec.with_baseline_layers()

    def block(self, index: int, half: Half) -> Block:
        """The layer of that number, to use that ``half`` of it."""
        return self.blocks[index]

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of its matrices, in which it computes. Norms may be held in fp32."""
        return self.embed.weight.dtype

    def forward(
        self,
        tokens: Tensor,
        cache: WindowedCache | None = None,
        attention_mask: Tensor | None = None,
        *,
        last_only: bool = False,
    ) -> Tensor:
        """Logits [B, T, V] for token ids ``tokens`` [B, T].

        ``cache`` holds the positions before them and takes the new ones. ``attention_mask`` [B, S], over cached and new
        positions, is 0 where there is padding (left padding keeps positions counting from the first real token).
        ``last_only`` computes the logits of the last position alone: [B, 1, V].
        """
        x = self.hidden_states(tokens, cache, attention_mask)
        return self.logits(x[:, -1:] if last_only else x)

    def hidden_states(
        self,
        tokens: Tensor,
        cache: WindowedCache | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """States of the residual stream after the last layer [B, T, C], before the final norm; the rest as in `forward`."""
        past = 0 if cache is None else cache.get_seq_length()
        total = past + tokens.shape[1]
        if total > self.spec.max_seq_len:
            raise InputError(f"{total} tokens are more than the model's context of {self.spec.max_seq_len}")
        positions, masks = positions_and_mask(tokens, total, attention_mask, None if cache is None else cache.shown)
        return self.through_layers(tokens, positions, self.rotary(positions, total), cache, masks)

    def through_layers(
        self,
        tokens: Tensor,
        positions: Tensor,
        rotary: Rotary,
        cache: Cache | None,
        masks: Masks,
        trace: Trace | None = None,
    ) -> Tensor:
        """`hidden_states` of tokens at ``positions`` [B, T] with their ``rotary``, which may look at what ``masks`` say.

        ``tokens`` may be embeddings [B, T, C] in their place. The pass keeps what ``trace`` asks for.
        """
        states = None if trace is None else trace.states
        x = self.embedded(tokens, positions)
        borrowing = None
        if self.integration is not None:
            borrowing = Borrowing(self.integration, self.baseline, self.spec.n_layer, cache, masks)
            borrowing.start(tokens, positions, masks.total)
        for index, block in enumerate(self.layers):
            if states is not None:
                states.append(x)
            if borrowing is not None:
                x = borrowing.enter(index, x)
            x = block(x, rotary, cache, index, masks.of(self.spec.layers[index].attention.window, index), trace)
        if states is not None:
            states.append(x)
        return x

    def embedded(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """What the first layer reads [B, T, C]: scaled embeddings of ``tokens`` [B, T], plus learned positions.

        Embeddings [B, T, C] are taken as they are, but for the positions.
        """
        x = tokens if tokens.is_floating_point() else self.embed(tokens)
        if self.spec.embed_scale != 1.0:
            x = x * self.spec.embed_scale
        return x if self.positions is None else x + self.positions(positions)

    def logits(self, x: Tensor) -> Tensor:
        """Logits [B, T, V] of states ``x`` [B, T, C] after the last layer."""
        x = self.final_norm(x)
        if self.lm_head is None:
            if self.embed.weight.is_meta and not x.is_meta:
                raise InputError(
                    "the embedding is offloaded, but the LM head is tied to it; keep decoder.embed on a device"
                )
            return self.head.finished(linear(x, self.embed.weight))
        return self.head.finished(self.lm_head(x))

    def rotary(self, positions: Tensor, total: int | None = None) -> Rotary:
        """Cosines and sines [B, 1, T, D/2] of rotary ``positions`` [B, T] of texts of ``total``
        tokens, by default as many as are given."""
        return rotary_of(self.spec, positions, positions.shape[-1] if total is None else total, self.dtype)

    def narrowed(self) -> Decoder:
        """A plain decoder of what takes part at the stored width that is set; this one itself when it is whole."""
        if self.current is None:
            return self
        width = self.current.width
        used = prefix(self.state_dict(), self.spec, width)
        state = {name: tensor.detach().clone() for name, tensor in used.items()}
        layers = tuple(
            dataclasses.replace(
                layer,
                attention=dataclasses.replace(layer.attention, out_bias=f"layers.{i}.attn.out_proj.bias" in state),
                mlp=dataclasses.replace(layer.mlp, down_bias=f"layers.{i}.mlp.down_proj.bias" in state),
            )
            for i, layer in enumerate(width.of(self.spec).layers)
        )
        smaller = Decoder.empty(dataclasses.replace(self.spec, layers=layers))
        smaller.record = self.record
        smaller.load_state_dict(state, assign=True)
        return smaller.eval()

    def at_width(self, heads: float, neurons: float) -> Decoder:
        """A plain decoder of a stored width, this one itself for the whole; `InputError` for a width that is not stored."""
        self.set_width(heads, neurons)
        found = self.narrowed()
        self.set_width(0.0)
        return found

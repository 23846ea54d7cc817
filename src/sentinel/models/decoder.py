"""One decoder for every family: attention with a gate per head, MLP, block, model.

Shape letters: B batch, T new tokens, S cached and new positions, C width (n_embd), H query heads, G key/value heads,
R = H / G query heads per group, D head_dim, F neurons (intermediate_size), V vocab_size.

Weights are stored so that a pruning level is a prefix. One group's queries, keys and values are neighbouring rows of
the fused projection, and its outputs neighbouring columns of the output projection, so that the first g groups are the
first rows and columns; the first f neurons likewise.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import Self

from sentinel.errors import InputError
from sentinel.models.integration import Borrowing, Integration
from sentinel.models.parts.linear import Projection, first_outputs, linear, of_first_inputs
from sentinel.models.parts.norms import make_norm
from sentinel.models.positions import positions_and_mask, require_below, rotary_frequencies, rotate, visible
from sentinel.models.record import Record
from sentinel.models.spec import LayerSpec, ModelSpec

Rotary = dict[int, tuple[Tensor, Tensor]]


class Cache(Protocol):
    """What the decoder asks of a key/value cache; `KVCache` and Hugging Face's ``Cache`` both have it."""

    def get_seq_length(self) -> int: ...

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]: ...


class Attention(nn.Module):
    """Causal self-attention with fused projections, grouped-query heads and one gate per query head.

    ``active_groups`` is the pruning level: the first groups of the stored order take part. The rest is not computed.
    """

    def __init__(self, spec: ModelSpec, layer: LayerSpec) -> None:
        super().__init__()
        self.layer = layer
        self.active_groups = layer.n_kv_head
        self.qkv_proj = Projection(spec.n_embd, layer.qkv_rows, bias=spec.qkv_bias)
        self.out_proj = Projection(layer.n_head * layer.head_dim, spec.n_embd, bias=spec.out_bias)
        self.gate = nn.Parameter(torch.ones(layer.n_head))

    def forward(self, x: Tensor, rotary: Rotary, cache: Cache | None, index: int, mask: Tensor | None) -> Tensor:
        """Attention output [B, T, C] for normalised input ``x`` [B, T, C].

        ``mask`` [B, 1, T, S] is True where a position may look; None means causal. Without active heads the output is
        the bias of the output projection (zero where there is none).
        """
        if self.active_groups == 0:
            if cache is not None:  # keeps the layer's length; it holds no heads
                empty = x.new_zeros(x.shape[0], 0, x.shape[1], self.layer.head_dim)
                cache.update(empty, empty, index)
            return self.project(x[..., :0])
        return self.project(self.heads(x, rotary, cache, index, mask))

    def heads(self, x: Tensor, rotary: Rotary, cache: Cache | None, index: int, mask: Tensor | None) -> Tensor:
        """Gated outputs of the active heads side by side [B, T, H * D]: what the output projection reads."""
        query, key, value = self._queries_keys_values(x, rotary)
        if cache is not None:
            key, value = cache.update(key, value, index)
        y = self._attend(query, key, value, mask)  # [B, H, T, D]
        y = y * self.gate[: y.shape[1], None, None]
        return y.transpose(1, 2).flatten(2)

    def queries_and_keys(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """Rotated queries and keys [B, H, T, D] of the active heads, keys repeated for each query head."""
        query, key, _ = self._queries_keys_values(x, rotary)
        return query, key.repeat_interleave(self.layer.group_size, dim=1)

    def _queries_keys_values(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, T, D], keys and values [B, G, T, D] of the active heads."""
        batch, new, _ = x.shape
        groups, per_group, dim = self.active_groups, self.layer.group_size, self.layer.head_dim
        rows = groups * (per_group + 2) * dim
        qkv = first_outputs(self.qkv_proj, x, rows)
        qkv = qkv.view(batch, new, groups, per_group + 2, dim)
        query = qkv[:, :, :, :per_group].flatten(2, 3).transpose(1, 2)
        key = qkv[:, :, :, per_group].transpose(1, 2)
        value = qkv[:, :, :, per_group + 1].transpose(1, 2)
        if rotary:
            query, key = rotate(query, *rotary[dim]), rotate(key, *rotary[dim])
        return query, key, value

    @property
    def projection(self) -> nn.Linear:
        """The output projection."""
        return self.out_proj

    def project(self, y: Tensor) -> Tensor:
        """Output projection [B, T, C] of the active heads' outputs ``y`` [B, T, H * D]."""
        return of_first_inputs(self.out_proj, y)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        new, total, per_group = query.shape[2], key.shape[2], self.layer.group_size
        if new == 1 and per_group > 1:
            # One new token: a group's queries take the place of time, so that keys and values need no repetition.
            grouped = query.view(query.shape[0], -1, per_group, query.shape[3])
            y = functional.scaled_dot_product_attention(grouped, key, value, attn_mask=mask)
            return y.view_as(query)
        if mask is None and 1 < new < total:
            mask = visible(new, total, query.device)
        if per_group > 1:
            key, value = key.repeat_interleave(per_group, dim=1), value.repeat_interleave(per_group, dim=1)
        causal = mask is None and bool(new > 1)  # a traced length is no bool
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)


def activate(name: str, x: Tensor) -> Tensor:
    """Apply the activation function of that name."""
    if name == "gelu_new":
        return functional.gelu(x, approximate="tanh")
    return {"gelu": functional.gelu, "silu": functional.silu, "relu": functional.relu}[name](x)


class MLP(nn.Module):
    """Two projections with an activation between, optionally gated (SwiGLU, Shazeer 2020).

    ``active_neurons`` is the pruning level: the first neurons of the stored order take part.
    """

    def __init__(self, spec: ModelSpec, layer: LayerSpec) -> None:
        super().__init__()
        self.activation = spec.activation
        self.active_neurons = layer.intermediate_size
        self.gate_proj = Projection(spec.n_embd, layer.intermediate_size, bias=spec.up_bias) if spec.gated_mlp else None
        self.up_proj = Projection(spec.n_embd, layer.intermediate_size, bias=spec.up_bias)
        self.down_proj = Projection(layer.intermediate_size, spec.n_embd, bias=spec.down_bias)

    def forward(self, x: Tensor) -> Tensor:
        """MLP output [B, T, C] for normalised input ``x`` [B, T, C]."""
        if self.active_neurons == 0:
            return self.project(x[..., :0])
        return self.project(self.hidden(x))

    @property
    def projection(self) -> nn.Linear:
        """The down projection."""
        return self.down_proj

    def project(self, hidden: Tensor) -> Tensor:
        """Down projection [B, T, C] of the active neurons ``hidden`` [B, T, F]."""
        return of_first_inputs(self.down_proj, hidden)

    def hidden(self, x: Tensor) -> Tensor:
        """Activations of the active neurons [B, T, F]: what the down projection reads."""
        up = first_outputs(self.up_proj, x, self.active_neurons)
        if self.gate_proj is None:
            return activate(self.activation, up)
        return activate(self.activation, first_outputs(self.gate_proj, x, self.active_neurons)) * up


class Block(nn.Module):
    """Pre-norm decoder layer: x + attention(norm(x)), then x + MLP(norm(x)). An empty half costs nothing."""

    def __init__(self, spec: ModelSpec, layer: LayerSpec) -> None:
        super().__init__()
        self.attn_norm = make_norm(spec)
        self.attn = Attention(spec, layer)
        self.mlp_norm = make_norm(spec)
        self.mlp = MLP(spec, layer)

    def forward(self, x: Tensor, rotary: Rotary, cache: Cache | None, index: int, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.attn_norm(x), rotary, cache, index, mask)
        return x + self.mlp(self.mlp_norm(x))

    def set_active(self, groups: int, neurons: int) -> None:
        """Let the first ``groups`` key/value groups and the first ``neurons`` take part."""
        self.attn.active_groups, self.mlp.active_neurons = groups, neurons


class Decoder(nn.Module):
    """Decoder-only language model of any supported family, trainable, with unequal layers allowed.

    ``integration`` and the frozen ``baseline`` are there where the specification asks for them. ``record`` says how
    the model was made; surgery passes it on, and `save_checkpoint` writes it.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.record = Record()
        self.embed = nn.Embedding(spec.vocab_size, spec.n_embd)
        self.positions = nn.Embedding(spec.max_seq_len, spec.n_embd) if spec.positions == "learned" else None
        self.layers = nn.ModuleList(Block(spec, layer) for layer in spec.layers)
        self.final_norm = make_norm(spec)
        self.lm_head = None if spec.tied_head else Projection(spec.n_embd, spec.vocab_size, bias=False)
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
    def blocks(self) -> list[Block]:
        """The layers, typed."""
        return [block for block in self.layers if isinstance(block, Block)]

    @property
    def head_weight(self) -> Tensor:
        """Weight of the LM head [V, C]; the embedding where they are tied."""
        return self.embed.weight if self.lm_head is None else self.lm_head.weight

    @property
    def cache_spec(self) -> ModelSpec:
        """Specification whose layers size the KV cache; those of the baseline follow the model's own."""
        return self.spec.with_baseline_layers()

    def set_active(self, groups: Sequence[int], neurons: Sequence[int]) -> None:
        """Set the pruning level: per layer, how many of the first key/value groups and neurons take part.

        Nothing is copied or forgotten, so that a later call can go up as well as down. Cached positions of another
        level are of no use to the new one. Raises `InputError` for counts that a layer does not have.
        """
        if len(groups) != self.spec.n_layer or len(neurons) != self.spec.n_layer:
            raise InputError(f"a pruning level needs one count per layer, {self.spec.n_layer} of each")
        for index, (layer, g, f) in enumerate(zip(self.spec.layers, groups, neurons, strict=True)):
            if not 0 <= g <= layer.n_kv_head or not 0 <= f <= layer.intermediate_size:
                raise InputError(
                    f"layer {index} has {layer.n_kv_head} head groups and {layer.intermediate_size} neurons, "
                    f"but the pruning level asks for {g} and {f}"
                )
        for block, g, f in zip(self.blocks, groups, neurons, strict=True):
            block.set_active(g, f)

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    def forward(
        self,
        tokens: Tensor,
        cache: Cache | None = None,
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
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        states: list[Tensor] | None = None,
    ) -> Tensor:
        """States of the residual stream after the last layer [B, T, C], before the final norm.

        ``tokens`` may be embeddings [B, T, C] in their place. ``attention_mask`` and ``position_ids`` are those of
        `positions_and_mask`; ``states`` collects what the first layer reads and what every layer leaves.
        """
        past = 0 if cache is None else cache.get_seq_length()
        total = past + tokens.shape[1]
        if total > self.spec.max_seq_len:
            raise InputError(f"{total} tokens are more than the model's context of {self.spec.max_seq_len}")
        positions, mask = positions_and_mask(tokens, total, attention_mask, position_ids, packed=cache is None)
        if position_ids is not None and self.positions is not None:
            require_below(position_ids, self.spec.max_seq_len)
        return self.through_layers(tokens, positions, self.rotary(positions), cache, mask, states=states)

    def through_layers(
        self,
        tokens: Tensor,
        positions: Tensor,
        rotary: Rotary,
        cache: Cache | None,
        mask: Tensor | None,
        *,
        states: list[Tensor] | None = None,
    ) -> Tensor:
        """`hidden_states` of tokens at ``positions`` [B, T], whose ``rotary`` it is, with a ``mask`` [B, 1, T, S]."""
        x = self.embedded(tokens, positions)
        borrowing = None
        if self.integration is not None:
            borrowing = Borrowing(self.integration, self.baseline, self.spec.n_layer, cache, mask)
            borrowing.start(tokens, positions)
        for index, block in enumerate(self.layers):
            if states is not None:
                states.append(x)
            if borrowing is not None:
                x = borrowing.enter(index, x)
            x = block(x, rotary, cache, index, mask)
        if states is not None:
            states.append(x)
        return x

    def embedded(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """What the first layer reads [B, T, C]: embeddings of ``tokens`` [B, T], plus learned positions if it has them.

        Embeddings [B, T, C] are taken as they are.
        """
        x = tokens if tokens.is_floating_point() else self.embed(tokens)
        return x if self.positions is None else x + self.positions(positions)

    def logits(self, x: Tensor) -> Tensor:
        """Logits [B, T, V] of states ``x`` [B, T, C] after the last layer."""
        x = self.final_norm(x)
        if self.lm_head is not None:
            return self.lm_head(x)
        if self.embed.weight.is_meta and not x.is_meta:
            raise InputError(
                "the embedding is offloaded, but the LM head is tied to it; keep decoder.embed on a device"
            )
        return linear(x, self.embed.weight)

    def rotary(self, positions: Tensor) -> Rotary:
        """Cosines and sines [B, 1, T, D/2] of rotary ``positions`` [B, T], by head_dim; empty for learned positions."""
        rope = self.spec.rope
        if rope is None:
            return {}
        tables: Rotary = {}
        for dim in {layer.head_dim for layer in self.spec.layers}:
            inverse = rotary_frequencies(rope, dim).to(positions.device)
            angles = positions[:, None, :, None].float() * inverse
            dtype = self.embed.weight.dtype
            tables[dim] = (angles.cos().to(dtype), angles.sin().to(dtype))
        return tables

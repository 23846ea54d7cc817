"""Causal self-attention with a gate per head.

Shape letters: B batch, T new tokens, S cached and new positions, C width (n_embd), H query heads, G key/value heads,
R = H / G query heads per group, D head_dim.

Weights are stored so that a width is a prefix. One group's queries, keys and values are neighbouring rows of the fused
projection, and its outputs neighbouring columns of the output projection, so that the first g groups are the first rows
and columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from sentinel.models.parts.linear import Projection, first_outputs, of_first_inputs
from sentinel.models.parts.norms import RMSNorm
from sentinel.models.positions import Rotary, rotate, visible
from sentinel.models.spec import AttentionSpec, ModelSpec


class Cache(Protocol):
    """What the decoder asks of a key/value cache; `KVCache` and Hugging Face's ``Cache`` both have it."""

    def get_seq_length(self) -> int: ...

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]: ...


class WindowedCache(Cache, Protocol):
    """One that keeps in layers with a window what ``shown`` tells: see `Masks`."""

    def shown(self, window: int, past: int, new: int) -> Tensor | None: ...


@dataclass
class Trace:
    """What a pass keeps for who asked: a list is filled, None is not.

    ``states`` [B, T, C] are what the first layer reads and what every layer leaves; ``weights`` [B, H, T, S] those of
    every layer's attention. ``eager`` attention is computed step by step, as ``weights`` need it, in place of fused.
    """

    states: list[Tensor] | None = None
    weights: list[Tensor] | None = None
    eager: bool = False


class Attention(nn.Module):
    """Causal self-attention with fused projections, grouped-query heads and one gate per query head.

    ``active_groups`` is the width: the first groups of the stored order take part. The rest is not computed.
    """

    def __init__(self, spec: ModelSpec, layer: AttentionSpec) -> None:
        super().__init__()
        self.layer = layer
        self.active_groups = layer.n_kv_head
        self.qkv_proj = Projection(spec.n_embd, layer.qkv_rows, bias=layer.qkv_bias)
        heads, groups = (1, 1) if layer.qk_norm == "head" else (layer.n_head, layer.n_kv_head)
        self.q_norm = RMSNorm(heads * layer.head_dim, spec.norm.eps) if layer.qk_norm else None
        self.k_norm = RMSNorm(groups * layer.head_dim, spec.norm.eps) if layer.qk_norm else None
        self.out_proj = Projection(layer.n_head * layer.head_dim, spec.n_embd, bias=layer.out_bias)
        self.gate = nn.Parameter(torch.ones(layer.n_head))

    def forward(
        self,
        x: Tensor,
        rotary: Rotary,
        cache: Cache | None,
        index: int,
        mask: Tensor | None,
        trace: Trace | None = None,
    ) -> Tensor:
        """Attention output [B, T, C] for normalised input ``x`` [B, T, C].

        ``mask`` [B, 1, T, S] is True where a position may look; None means causal. Without active heads the output is
        the bias of the output projection (zero where there is none).
        """
        if self.active_groups == 0:
            key = x.new_zeros(x.shape[0], 0, x.shape[1], self.layer.head_dim)
            if cache is not None:  # keeps the layer's length; it holds no heads
                key, _ = cache.update(key, key, index)
            if trace is not None and trace.weights is not None:
                trace.weights.append(x.new_zeros(x.shape[0], 0, x.shape[1], key.shape[2]))
            return self.project(x[..., :0])
        return self.project(self.heads(x, rotary, cache, index, mask, trace))

    def heads(
        self,
        x: Tensor,
        rotary: Rotary,
        cache: Cache | None,
        index: int,
        mask: Tensor | None,
        trace: Trace | None = None,
    ) -> Tensor:
        """Gated outputs of the active heads side by side [B, T, H * D]: what the output projection reads."""
        query, key, value = self._queries_keys_values(x, rotary)
        if cache is not None:
            key, value = cache.update(key, value, index)
        y = self._attend(query, key, value, mask, trace)  # [B, H, T, D]
        y = y * self.gate[: y.shape[1], None, None]
        return y.transpose(1, 2).flatten(2)

    def scores(self, x: Tensor, rotary: Rotary) -> Tensor:
        """Scores [B, H, T, T] of the active heads before the softmax, without a mask."""
        query, key, _ = self._queries_keys_values(x, rotary)
        return self._scores(query, key.repeat_interleave(self.layer.group_size, dim=1))

    def _scores(self, query: Tensor, key: Tensor) -> Tensor:
        scores = query @ key.transpose(2, 3) * self.layer.score_scale
        cap = self.layer.soft_cap
        return scores if cap is None else cap * torch.tanh(scores / cap)

    def _queries_keys_values(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, T, D], keys and values [B, G, T, D] of the active heads."""
        batch, new, _ = x.shape
        groups, per_group, dim = self.active_groups, self.layer.group_size, self.layer.head_dim
        rows = groups * (per_group + 2) * dim
        qkv = first_outputs(self.qkv_proj, x, rows)
        qkv = qkv.view(batch, new, groups, per_group + 2, dim)
        query = self._normed(self.q_norm, qkv[:, :, :, :per_group].flatten(2, 3)).transpose(1, 2)
        key = self._normed(self.k_norm, qkv[:, :, :, per_group]).transpose(1, 2)
        value = qkv[:, :, :, per_group + 1].transpose(1, 2)
        if self.layer.rope is not None:
            cos, sin = rotary[self.layer.rope, dim]
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        return query, key, value

    def _normed(self, norm: RMSNorm | None, x: Tensor) -> Tensor:
        """Queries or keys ``x`` [B, T, heads, D], normed as the layer asks."""
        if norm is None:
            return x
        return norm(x) if self.layer.qk_norm == "head" else norm(x.flatten(2)).view(x.shape)

    @property
    def projection(self) -> nn.Linear:
        """The output projection."""
        return self.out_proj

    def project(self, y: Tensor) -> Tensor:
        """Output projection [B, T, C] of the active heads' outputs ``y`` [B, T, H * D]."""
        return of_first_inputs(self.out_proj, y)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, trace: Trace | None) -> Tensor:
        new, total, per_group = query.shape[2], key.shape[2], self.layer.group_size
        if self.layer.soft_cap is not None or (trace is not None and trace.eager):
            return self._attend_eagerly(query, key, value, mask, trace)
        if new == 1 and per_group > 1:
            # One new token: a group's queries take the place of time, so that keys and values need no repetition.
            grouped = query.view(query.shape[0], -1, per_group, query.shape[3])
            y = self._fused(grouped, key, value, mask, False)
            return y.view_as(query)
        if mask is None and 1 < new < total:
            mask = visible(new, total, query.device)
        if per_group > 1:
            key, value = key.repeat_interleave(per_group, dim=1), value.repeat_interleave(per_group, dim=1)
        causal = mask is None
        if new == 1:  # asked so, since a traced length gives no bool
            causal = False
        return self._fused(query, key, value, mask, causal)

    def _fused(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, scale=self.layer.scale
        )

    def _attend_eagerly(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, trace: Trace | None
    ) -> Tensor:
        """Attention step by step: its scores may be capped and its weights kept, which the fused product can't do."""
        per_group = self.layer.group_size
        key, value = key.repeat_interleave(per_group, dim=1), value.repeat_interleave(per_group, dim=1)
        scores = self._scores(query, key)
        seen = visible(scores.shape[2], scores.shape[3], scores.device) if mask is None else mask
        scores = scores.masked_fill(~seen, -torch.inf) if seen.dtype == torch.bool else scores + seen
        weights = scores.float().softmax(-1).to(value.dtype)
        if trace is not None and trace.weights is not None:
            trace.weights.append(weights)
        return weights @ value

"""The original implementation: attention head by head in a plain loop, with masks instead of removal.

Every head has its own query, key, value and output projections, as in the per-head transformers that head-pruning
research started from. It is slow and simple enough to trust by reading: the oracle of the tests and the "original" of
every table.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from sentinel.models.decoder import Decoder
from sentinel.models.elastic import Elastic
from sentinel.models.features import EVERY_GROUP, require_supported
from sentinel.models.parts.attention import Attention, Cache, Trace
from sentinel.models.parts.block import Block
from sentinel.models.parts.linear import bias_of
from sentinel.models.parts.mlp import MLP, activate
from sentinel.models.parts.norms import RMSNorm
from sentinel.models.positions import Rotary, rotate, visible
from sentinel.models.spec import AttentionSpec, ModelSpec
from sentinel.models.width import with_own_groups

SUPPORTS = EVERY_GROUP


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer with its own copy of ``weight`` [out, in] and ``bias`` [out]."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def _plain(projection: nn.Linear, x: Tensor) -> Tensor:
    """The projection as PyTorch computes it, without the decoder's way of one row."""
    return functional.linear(x, projection.weight, projection.bias)


def _first(kept: int, total: int, device: torch.device) -> Tensor:
    """A mask [total]: 1 for the first ``kept``."""
    return (torch.arange(total, device=device) < kept).float()


class ReferenceHead(nn.Module):
    """Projections of a single query head, copied out of the fused ones."""

    def __init__(self, fused: Attention, head: int) -> None:
        super().__init__()
        layer = fused.layer
        dim, group = layer.head_dim, head // layer.group_size
        first = group * (layer.group_size + 2) * dim
        starts = (
            first + (head % layer.group_size) * dim,
            first + layer.group_size * dim,
            first + (layer.group_size + 1) * dim,
        )
        weight, bias = fused.qkv_proj.weight, bias_of(fused.qkv_proj)
        self.query, self.key, self.value = (
            _linear(weight[start : start + dim], None if bias is None else bias[start : start + dim])
            for start in starts
        )
        self.out = _linear(fused.out_proj.weight[:, head * dim : (head + 1) * dim], None)


class ReferenceAttention(nn.Module):
    """Attention as a loop over heads. ``mask[h]`` is 1 for a head that is kept and 0 for one that is pruned."""

    mask: Tensor

    def __init__(self, fused: Attention) -> None:
        super().__init__()
        self.layer: AttentionSpec = fused.layer
        self.heads = nn.ModuleList(ReferenceHead(fused, head) for head in range(fused.layer.n_head))
        self.gate = fused.gate
        self.q_norm, self.k_norm = fused.q_norm, fused.k_norm
        self.out_bias = bias_of(fused.out_proj)
        active = fused.active_groups * fused.layer.group_size
        self.register_buffer("mask", _first(active, fused.layer.n_head, self.gate.device))

    def forward(
        self,
        x: Tensor,
        rotary: Rotary,
        cache: Cache | None,
        index: int,
        mask: Tensor | None,
        trace: Trace | None = None,
    ) -> Tensor:
        """Attention output [B, T, C] for normalised input ``x`` [B, T, C]; the rest as in `Attention.forward`."""
        heads = [head for head in self.heads if isinstance(head, ReferenceHead)]
        queries = self._normed(self.q_norm, [head.query(x) for head in heads])
        keys = [self._rotated(key, rotary) for key in self._normed(self.k_norm, [head.key(x) for head in heads])]
        values = [head.value(x) for head in heads]
        if cache is not None:
            empty = x.new_zeros(x.shape[0], 0, x.shape[1], self.layer.head_dim)
            all_keys, all_values = cache.update(
                torch.stack(keys, 1) if keys else empty, torch.stack(values, 1) if values else empty, index
            )
            keys, values = list(all_keys.unbind(1)), list(all_values.unbind(1))
        output = torch.zeros_like(x)
        looks = [self._weights(self._rotated(q, rotary), key, mask) for q, key in zip(queries, keys, strict=True)]
        if trace is not None and trace.weights is not None and looks:
            trace.weights.append(torch.stack(looks, 1))
        for number, (head, weights, value) in enumerate(zip(heads, looks, values, strict=True)):
            output = output + head.out(weights @ value * self.gate[number] * self.mask[number])
        return output if self.out_bias is None else output + self.out_bias

    def _weights(self, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        """How much each position looks at each other [B, T, S]."""
        scores = query @ key.transpose(1, 2) * self.layer.score_scale
        if self.layer.soft_cap is not None:
            scores = self.layer.soft_cap * torch.tanh(scores / self.layer.soft_cap)
        seen = visible(scores.shape[1], scores.shape[2], query.device) if mask is None else mask[:, 0]
        return scores.masked_fill(~seen, -math.inf).softmax(dim=-1)

    def _normed(self, norm: RMSNorm | None, heads: list[Tensor]) -> list[Tensor]:
        """Queries or keys [B, T, D] of all heads, normed one by one, or over all the heads that are kept.

        Keys of a group stand here once per query head, which changes no mean.
        """
        if norm is None or not heads:
            return heads
        weight, eps = norm.weight, norm.eps
        if self.layer.qk_norm == "head":
            return [x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight for x in heads]
        kept = self.mask.sum().clamp(min=1)
        squares = [x.square().mean(-1, keepdim=True) * m for x, m in zip(heads, self.mask, strict=True)]
        square = torch.stack(squares).sum(0) / kept
        parts = weight.view(-1, self.layer.head_dim).repeat_interleave(
            len(heads) * self.layer.head_dim // len(weight), 0
        )
        return [x * (square + eps).rsqrt() * part for x, part in zip(heads, parts, strict=True)]

    def _rotated(self, x: Tensor, rotary: Rotary) -> Tensor:
        if self.layer.rope is None:
            return x
        return rotate(x[:, None], *rotary[self.layer.rope, self.layer.head_dim])[:, 0]


class ReferenceMLP(nn.Module):
    """MLP with a mask over its neurons: ``mask[j]`` is 1 for a neuron that is kept and 0 for one that is pruned."""

    mask: Tensor

    def __init__(self, mlp: MLP) -> None:
        super().__init__()
        self.activation = mlp.activation
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        weight = mlp.up_proj.weight
        mask = _first(mlp.active_neurons, mlp.up_proj.out_features, weight.device)
        self.register_buffer("mask", mask.to(weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        up = _plain(self.up_proj, x)
        if self.gate_proj is None:
            hidden = activate(self.activation, up)
        else:
            hidden = activate(self.activation, _plain(self.gate_proj, x)) * up
        return _plain(self.down_proj, hidden * self.mask)


class ReferenceBlock(Block):
    """A block with the norms of ``block`` and reference attention and MLP."""

    def __init__(self, block: Block) -> None:
        nn.Module.__init__(self)
        self.joints = block.joints
        self.attn_norm, self.mlp_norm = block.attn_norm, block.mlp_norm
        self.attn_post_norm, self.mlp_post_norm = block.attn_post_norm, block.mlp_post_norm
        self.attn: ReferenceAttention = ReferenceAttention(block.attn)  # pyright: ignore[reportIncompatibleVariableOverride]
        self.mlp: ReferenceMLP = ReferenceMLP(block.mlp)  # pyright: ignore[reportIncompatibleVariableOverride]

    def use(self, groups: int, neurons: int) -> None:
        """Mask the heads of all but the first ``groups`` key/value groups, and all but the first ``neurons``."""
        heads = groups * self.attn.layer.group_size
        self.attn.mask.copy_(_first(heads, len(self.attn.mask), self.attn.mask.device))
        self.mlp.mask.copy_(_first(neurons, len(self.mlp.mask), self.mlp.mask.device))


class ReferenceDecoder(Decoder):
    """The same function as ``decoder``, as pruned as it is set to be, computed head by head.

    Embeddings, norms, gates, MLP weights and fusions are shared.
    A width is a mask here: `use` silences heads and neurons without making anything smaller or faster.
    """

    def __init__(self, decoder: Decoder) -> None:
        require_supported(decoder.spec, SUPPORTS, "the reference (level 0)")
        Elastic.__init__(self)
        self.spec, self.record = decoder.spec, decoder.record
        self.embed, self.positions = decoder.embed, decoder.positions
        self.layers = nn.ModuleList(ReferenceBlock(block) for block in decoder.blocks)
        self.final_norm, self.lm_head = decoder.final_norm, decoder.lm_head
        self.integration = decoder.integration
        self.baseline = None if decoder.baseline is None else ReferenceDecoder(decoder.baseline)

    @property
    def cache_spec(self) -> ModelSpec:
        """Specification of the KV cache: every query head keeps keys and values of its own."""
        spec = self.spec.with_baseline_layers()
        return with_own_groups(spec)

"""One decoder layer: attention and MLP, and how they are joined to the residual stream."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from sentinel.models.parts.attention import Attention, Cache, Trace
from sentinel.models.parts.mlp import MLP
from sentinel.models.parts.norms import make_norm
from sentinel.models.positions import Rotary
from sentinel.models.spec import LayerSpec, ModelSpec

Half = Literal["attn", "mlp"]


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)), as `BlockSpec` varies it. An empty half costs nothing."""

    def __init__(self, spec: ModelSpec, layer: LayerSpec) -> None:
        super().__init__()
        self.joints = spec.block
        norms = {name: make_norm(spec) for name in spec.block.norms}
        self.attn_norm = norms.get("attn_norm")
        self.attn = Attention(spec, layer.attention)
        self.attn_post_norm = norms.get("attn_post_norm")
        self.mlp_norm = norms.get("mlp_norm")
        self.mlp = MLP(spec, layer.mlp)
        self.mlp_post_norm = norms.get("mlp_post_norm")

    def forward(
        self,
        x: Tensor,
        rotary: Rotary,
        cache: Cache | None,
        index: int,
        mask: Tensor | None,
        trace: Trace | None = None,
    ) -> Tensor:
        """State [B, T, C] after the layer, for the state ``x`` before it; the rest as in `Attention.forward`."""
        entering = x
        x = self.with_attention(x, self.attn(self.attn_input(x), rotary, cache, index, mask, trace))
        return self.with_mlp(x, self.mlp(self.mlp_input(entering if self.joints.parallel else x)))

    def attn_input(self, x: Tensor) -> Tensor:
        """What the attention reads [B, T, C] when the residual stream is ``x``."""
        return x if self.attn_norm is None else self.attn_norm(x)

    def mlp_input(self, x: Tensor) -> Tensor:
        """What the MLP reads [B, T, C] when the residual stream is ``x``: with parallel halves, as it enters the layer."""
        norm = self.attn_norm if self.joints.shared_norm else self.mlp_norm
        return x if norm is None else norm(x)

    def with_attention(self, x: Tensor, y: Tensor) -> Tensor:
        """The residual stream ``x`` with the attention's output ``y`` [B, T, C]."""
        return self._added(x, y, self.attn_post_norm)

    def with_mlp(self, x: Tensor, y: Tensor) -> Tensor:
        """The residual stream ``x`` with the MLP's output ``y`` [B, T, C]."""
        return self._added(x, y, self.mlp_post_norm)

    def _added(self, x: Tensor, y: Tensor, norm: nn.Module | None) -> Tensor:
        y = y if norm is None else norm(y)
        return x + y if self.joints.residual_scale == 1.0 else x + y * self.joints.residual_scale

    def use(self, groups: int, neurons: int) -> None:
        """Let the first ``groups`` key/value groups and the first ``neurons`` take part."""
        self.attn.active_groups, self.mlp.active_neurons = groups, neurons

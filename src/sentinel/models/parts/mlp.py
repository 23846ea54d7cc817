"""The MLP of a layer. Shape letters: B batch, T tokens, C width (n_embd), F neurons (intermediate_size)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from sentinel.models.parts.linear import Projection, first_outputs, of_first_inputs
from sentinel.models.spec import MlpSpec, ModelSpec


def activate(name: str, x: Tensor) -> Tensor:
    """Apply the activation function of that name."""
    if name == "gelu_new":
        return functional.gelu(x, approximate="tanh")
    return {"gelu": functional.gelu, "silu": functional.silu, "relu": functional.relu}[name](x)


class MLP(nn.Module):
    """Two projections with an activation between, optionally gated (SwiGLU, Shazeer 2020).

    ``active_neurons`` is the width: the first neurons of the stored order take part.
    """

    def __init__(self, spec: ModelSpec, layer: MlpSpec) -> None:
        super().__init__()
        self.activation = layer.activation
        self.active_neurons = layer.intermediate_size
        self.gate_proj = Projection(spec.n_embd, layer.intermediate_size, bias=layer.up_bias) if layer.gated else None
        self.up_proj = Projection(spec.n_embd, layer.intermediate_size, bias=layer.up_bias)
        self.down_proj = Projection(layer.intermediate_size, spec.n_embd, bias=layer.down_bias)

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

"""One half of a layer: what a criterion may know of it without knowing the rest of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from sentinel.models.parts.block import Half
from sentinel.models.spec import ModelSpec
from sentinel.models.tensors import TensorSpec, tensors_of


def half_tensors(spec: ModelSpec, index: int, half: Half) -> list[TensorSpec]:
    """The tensors of one half of a layer, its norms included; a norm that both halves share is the attention's."""
    start = f"layers.{index}."
    its = (tensor for tensor in tensors_of(spec) if tensor.name.startswith(start))
    return [tensor for tensor in its if tensor.name.removeprefix(start).startswith(half)]


@dataclass(frozen=True)
class HalfLayer:
    """The attention or the MLP of layer ``index``.

    ``state`` has its tensors by their names in the decoder. ``gram`` [K, K] is the sum over calibration tokens of z z^T, z
    being what its output projection reads; None where it was not asked for. ``seed`` is for what is drawn.
    """

    spec: ModelSpec
    index: int
    half: Half
    state: Mapping[str, Tensor]
    gram: Tensor | None = None
    seed: int = 0

    @property
    def tensors(self) -> list[TensorSpec]:
        """What is known of each tensor of ``state``."""
        return half_tensors(self.spec, self.index, self.half)

    @property
    def projection(self) -> Tensor:
        """The weight [C, K] of the output projection."""
        name = "attn.out_proj" if self.half == "attn" else "mlp.down_proj"
        return self.state[f"layers.{self.index}.{name}.weight"]

    @property
    def units(self) -> int:
        """Head groups or neurons."""
        layer = self.spec.layers[self.index]
        return layer.n_kv_head if self.half == "attn" else layer.intermediate_size

# pyright: standard
"""The layers of a decoder as nodes of an ONNX graph, from ONNX Runtime's own fused operators.

Every method returns the name of what it made. Letters as in `sentinel.models.decoder`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sentinel.formats.onnx_nodes import MICROSOFT, Nodes
from sentinel.models.decoder import Decoder
from sentinel.models.families.weights import split_qkv
from sentinel.models.layer_spec import AttentionSpec, MlpSpec, RopeSpec
from sentinel.models.rotary import tables
from sentinel.models.tensors import with_scales_folded


@dataclass(frozen=True)
class Place:
    """Names of what the graph is given and gives: ids [B, T], ``lengths`` [B] (positions with the new ones, less one),
    ``total``, and of layer i ``key.format(i=i)``, ``new_key`` and so on."""

    tokens: str
    lengths: str
    total: str
    key: str
    value: str
    new_key: str
    new_value: str


class Layers:
    """Adds a decoder to ``nodes``. Gates and scales are in the weights."""

    def __init__(self, nodes: Nodes, decoder: Decoder, place: Place) -> None:
        self._nodes, self._spec, self._place = nodes, decoder.spec, place
        state = {name: tensor.detach().float().cpu() for name, tensor in decoder.state_dict().items()}
        self._state = with_scales_folded(state, decoder.spec)
        self._tables: dict[tuple[RopeSpec, int], tuple[str, str]] = {}

    def states(self) -> str:
        """The residual stream after all layers, normed [B, T, C]."""
        nodes, spec, block = self._nodes, self._spec, self._spec.block
        x = nodes.look_up(self._array("embed.weight"), self._place.tokens, shared=spec.tied_head)
        if spec.embed_scale != 1.0:
            x = nodes.node("Mul", x, nodes.constant(np.array(spec.embed_scale, np.float32), streamed=False))
        if spec.learned_positions:
            x = nodes.node(
                "Add", x, nodes.node("Gather", nodes.table(self._array("positions.weight")), self._positions())
            )
        for index in range(spec.n_layer):
            name = f"layers.{index}"
            entering = x
            normed = self._norm(f"{name}.attn_norm", x) if block.pre_norm else x
            x = self._added(x, self._attention(index, normed), f"{name}.attn_post_norm")
            read = entering if block.parallel else x
            if block.shared_norm:
                read = normed
            elif block.pre_norm:
                read = self._norm(f"{name}.mlp_norm", read)
            x = self._added(x, self._mlp(index, read), f"{name}.mlp_post_norm")
        return self._norm("final_norm", x)

    def logits(self, x: str) -> str:
        """Logits [..., V] of normed states ``x`` [..., C]."""
        nodes, spec = self._nodes, self._spec
        weight = self._array("embed.weight" if spec.tied_head else "lm_head.weight")
        y = nodes.shared_head(x, weight) or nodes.matrix(x, weight, self._optional("lm_head.bias"))
        if spec.logit_soft_cap is None:
            return y
        cap = nodes.constant(np.array(spec.logit_soft_cap, np.float32), streamed=False)
        return nodes.node("Mul", nodes.node("Tanh", nodes.node("Div", y, cap)), cap)

    def _positions(self) -> str:
        """Positions [B, T] of the new tokens: from 0 in a first pass, whose rows may be padded at their end."""
        nodes = self._nodes
        number = nodes.integer
        new = nodes.node("Gather", nodes.node("Shape", self._place.tokens), number(1))
        ends = nodes.node("Add", nodes.node("Cast", self._place.lengths, to=7), number(1))
        starts = nodes.node("Max", nodes.node("Sub", ends, new), number(0))
        steps = nodes.node("Range", number(0), new, number(1))
        return nodes.node("Add", nodes.node("Unsqueeze", starts, number([1])), steps)

    def _added(self, x: str, y: str | Tensor | None, norm: str) -> str:
        """``x`` with what a half adds, after its own norm if there is one; an empty half adds a vector or nothing."""
        post = self._spec.block.post_norm
        if isinstance(y, str):
            return self._nodes.node("Add", x, self._norm(norm, y) if post else y)
        added = self._vector_normed(norm, y) if post else y
        return x if added is None else self._nodes.node("Add", x, self._nodes.constant(added.numpy()))

    def _vector_normed(self, norm: str, y: Tensor | None) -> Tensor | None:
        """A vector [C], None for zeros, after a norm: a LayerNorm makes its bias of zeros."""
        weight, eps = self._state[f"{norm}.weight"], self._spec.norm.eps
        if self._spec.norm.kind == "layernorm":
            zeros = weight.new_zeros(len(weight))
            return functional.layer_norm(
                zeros if y is None else y, weight.shape, weight, self._state[f"{norm}.bias"], eps
            )
        return None if y is None else functional.rms_norm(y, weight.shape, weight, eps)

    def _attention(self, index: int, x: str) -> str | Tensor | None:
        nodes, layer, name = self._nodes, self._spec.layers[index].attention, f"layers.{index}.attn"
        if not layer.n_head:
            return self._state.get(f"{name}.out_proj.bias")
        place, parts = self._place, self._queries_keys_values(index, x)
        turns = () if layer.rope is None else self._turns(layer.rope, layer.head_dim)
        options: dict[str, Any] = {
            "num_heads": layer.n_head,
            "kv_num_heads": layer.n_kv_head,
            "do_rotary": int(bool(turns)),
        }
        if layer.window is not None:
            options["local_window_size"] = layer.window
        if layer.scale is not None:
            options["scale"] = layer.scale
        if layer.soft_cap is not None:
            options["softcap"] = layer.soft_cap
        y = nodes.node(
            "GroupQueryAttention",
            *(*parts, place.key.format(i=index), place.value.format(i=index), place.lengths, place.total, *turns),
            outputs=(f"y.{index}", place.new_key.format(i=index), place.new_value.format(i=index)),
            domain=MICROSOFT,
            **options,
        )
        return nodes.matrix(y, self._array(f"{name}.out_proj.weight"), self._optional(f"{name}.out_proj.bias"))

    def _queries_keys_values(self, index: int, x: str) -> tuple[str, str, str]:
        """Side by side as the first of them, or apart where they are normed."""
        nodes, layer, name = self._nodes, self._spec.layers[index].attention, f"layers.{index}.attn"
        weights = split_qkv(self._state[f"{name}.qkv_proj.weight"], layer)
        bias = self._state.get(f"{name}.qkv_proj.bias")
        added = None if bias is None else np.concatenate([part.numpy() for part in split_qkv(bias, layer)])
        packed = nodes.matrix(x, np.concatenate([part.numpy() for part in weights]), added)
        if layer.qk_norm is None:
            return packed, "", ""
        sizes = nodes.constant(np.array([len(part) for part in weights], np.int64), streamed=False)
        made = tuple(f"{part}.{index}" for part in "qkv")
        nodes.node("Split", packed, sizes, outputs=made, axis=-1)
        query, key, value = made
        return self._normed(layer, f"{name}.q_norm", query), self._normed(layer, f"{name}.k_norm", key), value

    def _normed(self, layer: AttentionSpec, norm: str, x: str) -> str:
        """Queries or keys ``x`` [B, T, heads * D], normed as the layer asks."""
        if layer.qk_norm == "whole":
            return self._norm(norm, x, "rmsnorm")
        shapes = (np.array(shape, np.int64) for shape in ([0, 0, -1, layer.head_dim], [0, 0, -1]))
        apart, together = (self._nodes.constant(shape, streamed=False) for shape in shapes)
        return self._nodes.node("Reshape", self._norm(norm, self._nodes.node("Reshape", x, apart), "rmsnorm"), together)

    def _turns(self, rope: RopeSpec, head_dim: int) -> tuple[str, str]:
        """Cosines and sines [max_seq_len, turned / 2]."""
        if (rope, head_dim) not in self._tables:
            length = self._spec.max_seq_len
            cos, sin = (self._nodes.constant(t, streamed=False) for t in tables(rope, head_dim, length, length))
            self._tables[rope, head_dim] = cos, sin
        return self._tables[rope, head_dim]

    def _mlp(self, index: int, x: str) -> str | Tensor | None:
        nodes, layer, name = self._nodes, self._spec.layers[index].mlp, f"layers.{index}.mlp"
        if not layer.intermediate_size:
            return self._state.get(f"{name}.down_proj.bias")

        def projected(part: str, x: str) -> str:
            return nodes.matrix(x, self._array(f"{name}.{part}.weight"), self._optional(f"{name}.{part}.bias"))

        up = projected("up_proj", x)
        if not layer.gated:
            return projected("down_proj", self._activated(layer, up))
        return projected("down_proj", nodes.node("Mul", self._activated(layer, projected("gate_proj", x)), up))

    def _activated(self, layer: MlpSpec, x: str) -> str:
        if layer.activation == "silu":
            return self._nodes.node("Mul", x, self._nodes.node("Sigmoid", x))
        if layer.activation == "gelu_new":
            return self._nodes.node("FastGelu", x, domain=MICROSOFT)
        return self._nodes.node({"gelu": "Gelu", "relu": "Relu"}[layer.activation], x)

    def _norm(self, name: str, x: str, kind: str | None = None) -> str:
        kind = kind or self._spec.norm.kind
        parts = ("weight", "bias") if kind == "layernorm" else ("weight",)
        vectors = [self._nodes.constant(self._array(f"{name}.{part}")) for part in parts]
        op = "LayerNormalization" if kind == "layernorm" else "SimplifiedLayerNormalization"
        return self._nodes.node(op, x, *vectors, epsilon=self._spec.norm.eps, axis=-1)

    def _array(self, name: str) -> NDArray[np.float32]:
        return self._state[name].numpy()

    def _optional(self, name: str) -> NDArray[np.float32] | None:
        return self._array(name) if name in self._state else None

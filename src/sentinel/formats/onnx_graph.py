# pyright: standard
# Not strict: what it imports is an extra, which is unknown where it is not installed.
"""Builds a decoder as an ONNX graph with its KV cache as inputs and outputs, from ONNX Runtime's own fused operators.

Inputs: ``tokens`` [B, T], ``positions`` [T] (learned positions only), ``seqlens`` [B] (cached and new positions, less one),
``total`` (cached and new positions), and per layer ``key.i`` and ``value.i`` [B, G, room, D]. Outputs: ``logits`` [B, V]
of the last position, and per layer ``new_key.i`` and ``new_value.i``, which may be the input buffers themselves.
Letters as in `sentinel.models.decoder`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx  # pyright: ignore[reportMissingImports]
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn

from sentinel.errors import InputError
from sentinel.models.decoder import Decoder
from sentinel.models.families.weights import split_qkv
from sentinel.models.features import PLAIN, ROPE_SCALINGS, SINGLE_BIASES, require_supported
from sentinel.models.parts.block import Block
from sentinel.models.parts.linear import bias_of
from sentinel.models.rotary import tables
from sentinel.models.spec import ModelSpec
from sentinel.models.tensors import with_gates_folded

MICROSOFT = "com.microsoft"
OPSET = 20  # the first with Gelu
BLOCK = 32  # weights per scale in MatMulNBits
SUPPORTS = (
    PLAIN | SINGLE_BIASES | {"layers of unequal sizes", "no positions"} | (ROPE_SCALINGS - {"rotary scaling longrope"})
)
Matrices = Literal["fp32", "dynamic int8", "int8 blocks", "int4 blocks"]


def write_onnx(decoder: Decoder, path: Path, matrices: Matrices) -> int:
    """Write ``decoder`` with its matrices in that form; returns the bytes of weights that one decoded token reads.

    Raises `InputError` for head sizes that the attention operator does not take.
    """
    require_supported(decoder.spec, SUPPORTS, "this ONNX graph")
    multiple = 16 if decoder.spec.layers[0].attention.rope else 8
    for layer in decoder.spec.layers:
        if layer.head_dim % multiple:
            raise InputError(f"onnxruntime's attention takes a head_dim that {multiple} divides, not {layer.head_dim}")
    graph = _Graph(matrices)
    with torch.inference_mode():
        logits = _decoder(graph, decoder)
    spec = decoder.spec
    inputs = [
        helper.make_tensor_value_info("tokens", TensorProto.INT64, ["B", "T"]),
        helper.make_tensor_value_info("seqlens", TensorProto.INT32, ["B"]),
        helper.make_tensor_value_info("total", TensorProto.INT32, []),
    ]
    if spec.learned_positions:
        inputs.append(helper.make_tensor_value_info("positions", TensorProto.INT64, ["T"]))
    results = [helper.make_tensor_value_info(logits, TensorProto.FLOAT, ["B", spec.vocab_size])]
    for i, layer in enumerate(spec.layers):
        shape = ["B", layer.n_kv_head, "room", layer.head_dim]
        for name in ("key", "value"):
            inputs.append(helper.make_tensor_value_info(f"{name}.{i}", TensorProto.FLOAT, shape))
            results.append(helper.make_tensor_value_info(f"new_{name}.{i}", TensorProto.FLOAT, shape))
    body = helper.make_graph(graph.nodes, "decoder", inputs, results, graph.constants)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(body, opset_imports=opsets, ir_version=10)
    onnx.save_model(model, str(path), save_as_external_data=True, location=f"{path.name}.data", size_threshold=1024)
    return graph.weight_bytes


class _Graph:
    """Nodes and constants, added in order of computation; every method returns the name of what it made."""

    def __init__(self, matrices: Matrices) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.weight_bytes = 0
        self._matrices = matrices

    def constant(self, array: NDArray[Any], *, streamed: bool = True) -> str:
        """A weight; ``streamed`` when every decoded token reads all of it."""
        name = f"w{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        self.weight_bytes += array.nbytes * streamed
        return name

    def table(self, array: NDArray[Any]) -> str:
        """A weight of which a token reads one row."""
        self.weight_bytes += array[:1].nbytes
        return self.constant(array, streamed=False)

    def node(self, op: str, *inputs: str, outputs: tuple[str, ...] = (), domain: str = "", **attributes: Any) -> str:
        """One operator with one output, or with those that are named."""
        made = outputs or (f"x{len(self.nodes)}",)
        self.nodes.append(helper.make_node(op, list(inputs), list(made), domain=domain, **attributes))
        return made[0]

    def matrix(self, x: str, weight: NDArray[np.float32], bias: NDArray[np.float32] | None) -> str:
        """x W^T + b for ``weight`` [out, in]."""
        added = () if bias is None else (self.constant(bias),)
        if self._matrices == "fp32":
            y = self.node("MatMul", x, self.constant(np.transpose(weight)))
            return self.node("Add", y, *added) if added else y
        if self._matrices == "dynamic int8":
            scales = np.abs(weight).max(axis=1) / 127
            scales[scales == 0] = 1
            rounded = np.rint(weight / scales[:, None]).astype(np.int8)
            arrays = (
                self.constant(np.transpose(rounded)),
                self.constant(scales),
                self.constant(np.zeros(len(weight), np.int8)),
            )
            return self.node("DynamicQuantizeMatMul", x, *arrays, *added, domain=MICROSOFT)
        bits = 8 if self._matrices == "int8 blocks" else 4
        packed, scales = _blocks(weight, bits)
        inputs = (x, self.constant(packed), self.constant(scales), "", "", *added)
        rows, columns = weight.shape
        sizes: dict[str, Any] = {"K": columns, "N": rows, "bits": bits, "block_size": BLOCK}
        # Level 4: products in int8, the fastest that there is.
        return self.node("MatMulNBits", *inputs, domain=MICROSOFT, accuracy_level=4, **sizes)


def _blocks(weight: NDArray[np.float32], bits: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes [out, blocks, BLOCK * bits / 8] around the middle of their range, and scales [out * blocks]."""
    middle = 1 << (bits - 1)
    padded = np.reshape(np.pad(weight, ((0, 0), (0, -weight.shape[1] % BLOCK))), (len(weight), -1, BLOCK))
    furthest: NDArray[np.float32] = np.take_along_axis(padded, np.abs(padded).argmax(-1)[..., None], -1)
    scales = furthest / -middle  # the value furthest from 0 becomes the lowest code, of which there is one more
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)
    rounded = np.rint(padded * inverse) + middle
    codes = np.minimum(np.maximum(rounded, 0), 2 * middle - 1).astype(np.uint8)
    if bits == 4:
        codes = np.bitwise_or(codes[..., ::2], np.left_shift(codes[..., 1::2], np.uint8(4)))
    return codes, np.ravel(scales).astype(np.float32)


def _decoder(graph: _Graph, decoder: Decoder) -> str:
    """Logits [B, V] of the last position."""
    spec = decoder.spec
    x = graph.node("Gather", graph.table(_array(decoder.embed.weight)), "tokens")
    if decoder.positions is not None:
        x = graph.node("Add", x, graph.node("Gather", graph.table(_array(decoder.positions.weight)), "positions"))
    rotary = _rotary_tables(graph, spec)
    folded = with_gates_folded(decoder.state_dict(), spec)
    for index, block in enumerate(decoder.blocks):
        out_weight = folded[f"layers.{index}.attn.out_proj.weight"]
        normed = _norm(graph, spec, block.attn_norm, x)
        x = graph.node("Add", x, _attention(graph, block, out_weight, index, normed, rotary))
        x = graph.node("Add", x, _mlp(graph, spec, block, _norm(graph, spec, block.mlp_norm, x)))
    last = graph.node("Gather", x, graph.constant(np.array(-1), streamed=False), axis=1)
    return graph.matrix(_norm(graph, spec, decoder.final_norm, last), _array(decoder.head.weight), None)


def _norm(graph: _Graph, spec: ModelSpec, norm: nn.Module | None, x: str) -> str:
    assert norm is not None
    vectors = [graph.constant(_array(vector)) for vector in norm.parameters()]
    name = "LayerNormalization" if spec.norm.kind == "layernorm" else "SimplifiedLayerNormalization"
    return graph.node(name, x, *vectors, epsilon=spec.norm.eps, axis=-1)


def _rotary_tables(graph: _Graph, spec: ModelSpec) -> tuple[str, ...]:
    """Cosines and sines [max_seq_len, D/2]; nothing for learned positions."""
    rope = spec.layers[0].attention.rope
    if rope is None:
        return ()
    both = tables(rope, spec.layers[0].head_dim, spec.max_seq_len, spec.max_seq_len)
    return tuple(graph.constant(table, streamed=False) for table in both)


def _attention(graph: _Graph, block: Block, out_weight: Tensor, index: int, x: str, rotary: tuple[str, ...]) -> str:
    """``out_weight`` is the output projection with the gates in it."""
    attn, layer = block.attn, block.attn.layer
    weight = np.concatenate([_array(part) for part in split_qkv(attn.qkv_proj.weight, layer)])
    bias = bias_of(attn.qkv_proj)
    added = None if bias is None else np.concatenate([_array(part) for part in split_qkv(bias, layer)])
    packed = graph.matrix(x, weight, added)  # queries, keys, values side by side
    y = graph.node(
        "GroupQueryAttention",
        *(packed, "", "", f"key.{index}", f"value.{index}", "seqlens", "total", *rotary),
        outputs=(f"y.{index}", f"new_key.{index}", f"new_value.{index}"),
        domain=MICROSOFT,
        num_heads=layer.n_head,
        kv_num_heads=layer.n_kv_head,
        do_rotary=int(bool(rotary)),
    )
    return graph.matrix(y, _array(out_weight), _optional(bias_of(attn.out_proj)))


def _mlp(graph: _Graph, spec: ModelSpec, block: Block, x: str) -> str:
    mlp = block.mlp
    up = graph.matrix(x, _array(mlp.up_proj.weight), _optional(bias_of(mlp.up_proj)))
    if mlp.gate_proj is None:
        hidden = _activate(graph, mlp.activation, up)
    else:
        gate = graph.matrix(x, _array(mlp.gate_proj.weight), _optional(bias_of(mlp.gate_proj)))
        hidden = graph.node("Mul", _activate(graph, mlp.activation, gate), up)
    return graph.matrix(hidden, _array(mlp.down_proj.weight), _optional(bias_of(mlp.down_proj)))


def _activate(graph: _Graph, name: str, x: str) -> str:
    if name == "silu":
        return graph.node("Mul", x, graph.node("Sigmoid", x))
    if name == "gelu_new":
        return graph.node("FastGelu", x, domain=MICROSOFT)
    return graph.node({"gelu": "Gelu", "relu": "Relu"}[name], x)


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.detach().float().cpu().numpy()


def _optional(tensor: Tensor | None) -> NDArray[np.float32] | None:
    return None if tensor is None else _array(tensor)

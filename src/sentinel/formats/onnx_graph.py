# pyright: standard
# Not strict: what it imports is an extra, which is unknown where it is not installed.
"""Builds a decoder as an ONNX graph with its KV cache as inputs and outputs, from ONNX Runtime's own fused operators.

There are two sets of inputs and outputs, of which every layer with heads has keys and values [B, G, room, D].

`BUFFERS`, for whoever binds buffers once: ``tokens`` [B, T], ``seqlens`` [B] (cached and new positions, less one),
``total`` (cached and new positions), ``key.i``, ``value.i``; ``logits`` [B, V] of the last position, ``new_key.i`` and
``new_value.i``, which may be the input buffers themselves.

`NAMED`, as Hugging Face's and onnxruntime-genai's graphs: ``input_ids`` [B, T], ``attention_mask`` [B, S] over cached and
new positions, ``past_key_values.i.key`` and ``.value`` [B, G, P, D]; ``logits`` [B, T, V], ``present.i.key`` and
``.value`` [B, G, max(P, S), D]. Rows of unequal length are padded at their end: a row has as many positions as its mask has
ones, and the next token takes the place of its padding.
Letters as in `sentinel.models.decoder`.
"""

from __future__ import annotations

from pathlib import Path

import onnx  # pyright: ignore[reportMissingImports]
import torch
from onnx import TensorProto, helper  # pyright: ignore[reportMissingImports]

from sentinel.formats.onnx_layers import Layers, Place
from sentinel.formats.onnx_nodes import MICROSOFT, Matrices, Nodes
from sentinel.formats.onnx_support import require_onnx
from sentinel.models.decoder import Decoder

OPSET = 20  # the first with Gelu
BUFFERS = Place("tokens", "seqlens", "total", "key.{i}", "value.{i}", "new_key.{i}", "new_value.{i}")
NAMED = Place(
    "input_ids",
    "lengths",
    "total",
    "past_key_values.{i}.key",
    "past_key_values.{i}.value",
    "present.{i}.key",
    "present.{i}.value",
)


def write_onnx(decoder: Decoder, path: Path, matrices: Matrices, place: Place = BUFFERS) -> int:
    """Write ``decoder`` with its matrices in that form and the inputs and outputs ``place``, `BUFFERS` or `NAMED`; returns
    the bytes of weights that one decoded token reads.

    Raises `InputError` for features that it does not have, and for head sizes that the attention operator does not take.
    """
    spec = decoder.spec
    require_onnx(spec)
    named = place == NAMED
    nodes = Nodes(matrices, compact=named)
    inputs = [helper.make_tensor_value_info(place.tokens, TensorProto.INT64, ["B", "T"])]
    if named:
        inputs.append(helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["B", "S"]))
        _lengths_of_mask(nodes, place)
    else:
        inputs.append(helper.make_tensor_value_info(place.lengths, TensorProto.INT32, ["B"]))
        inputs.append(helper.make_tensor_value_info(place.total, TensorProto.INT32, []))
    with torch.inference_mode():
        layers = Layers(nodes, decoder, place)
        x = layers.states()
        if not named:
            x = nodes.node("Gather", x, nodes.integer(-1), axis=1)
        logits = layers.logits(x)
    shape = ["B", "T", spec.vocab_size] if named else ["B", spec.vocab_size]
    results = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)]
    nodes.node("Identity", logits, outputs=("logits",))
    for i, layer in enumerate(spec.layers):
        shape = ["B", layer.n_kv_head, "P", layer.head_dim]
        after = [*shape[:2], "K" if named else "P", layer.head_dim]
        for before, new in ((place.key, place.new_key), (place.value, place.new_value)) if layer.n_head else ():
            inputs.append(helper.make_tensor_value_info(before.format(i=i), TensorProto.FLOAT, shape))
            results.append(helper.make_tensor_value_info(new.format(i=i), TensorProto.FLOAT, after))
    body = helper.make_graph(nodes.nodes, "decoder", inputs, results, nodes.constants)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(body, opset_imports=opsets, ir_version=10)
    onnx.save_model(model, str(path), save_as_external_data=True, location=f"{path.name}.data", size_threshold=1024)
    return nodes.weight_bytes


def _lengths_of_mask(nodes: Nodes, place: Place) -> None:
    """What the attention operator asks for, from ``attention_mask``."""
    counted = nodes.node("ReduceSum", "attention_mask", nodes.integer([1]), keepdims=0)
    less_one = nodes.node("Sub", counted, nodes.integer(1))
    nodes.node("Cast", less_one, outputs=(place.lengths,), to=TensorProto.INT32)
    total = nodes.node("Gather", nodes.node("Shape", "attention_mask"), nodes.integer(1))
    nodes.node("Cast", total, outputs=(place.total,), to=TensorProto.INT32)

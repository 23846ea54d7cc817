"""What `onnx_graph` can write, known without importing onnx."""

from __future__ import annotations

from sentinel.errors import InputError
from sentinel.models.features import (
    ATTENTION_VARIANTS,
    BLOCK_VARIANTS,
    END_VARIANTS,
    MIXED_MLPS,
    PLAIN,
    ROPE_SCALINGS,
    ROTARY_VARIANTS,
    SINGLE_BIASES,
    UNEQUAL,
    require_supported,
)
from sentinel.models.spec import ModelSpec

SUPPORTS = (
    PLAIN
    | UNEQUAL
    | MIXED_MLPS
    | SINGLE_BIASES
    | ROTARY_VARIANTS
    | ATTENTION_VARIANTS
    | BLOCK_VARIANTS
    | END_VARIANTS
    | (ROPE_SCALINGS - {"rotary scaling longrope"})
)
PLAIN_MULTIPLE, ROTARY_MULTIPLE = 8, 16  # of head sizes, and of how many numbers of a head are turned


def require_onnx(spec: ModelSpec) -> None:
    """Raise `InputError` for a feature that the graph does not have, and for head sizes that its attention operator does
    not take, with the number of the layer."""
    require_supported(spec, SUPPORTS, "this ONNX graph")
    for index, layer in enumerate(spec.layers):
        if not layer.n_head:
            continue
        rope = layer.attention.rope
        multiple = PLAIN_MULTIPLE if rope is None else ROTARY_MULTIPLE
        if layer.head_dim % multiple:
            raise InputError(
                f"onnxruntime's attention takes a head_dim that {multiple} divides, "
                f"not the {layer.head_dim} of layer {index}"
            )
        turned = 0 if rope is None else rope.dim_of(layer.head_dim)
        if turned % ROTARY_MULTIPLE:
            raise InputError(
                f"onnxruntime's attention turns a part of a head that {ROTARY_MULTIPLE} divides, "
                f"not the {turned} numbers of layer {index}"
            )

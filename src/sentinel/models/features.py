"""What a model needs of whoever runs or writes it, by name, and the one check of that."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from sentinel.errors import InputError
from sentinel.models.spec import LayerSpec, ModelSpec

Features = frozenset[str]

# Whoever runs or writes models states what it can do as a union of these groups and of single names, in its ``SUPPORTS``.
# A group is closed: a new name in it would be a claim of all who name the group. A new feature is a group of its own, in
# `ALL` at first, and in `EVERY_GROUP` once the decoder, its reference and the native engine do it.

# Sizes and joints that most can do.
NORMS = frozenset({"LayerNorm", "RMSNorm"})
ACTIVATIONS = frozenset({"activation gelu_new", "activation gelu", "activation silu", "activation relu"})
MLPS = frozenset({"plain MLP", "gated MLP"})
BIASES = frozenset({"a bias of queries, keys and values", "a bias of the attention output"}) | frozenset(
    {"a bias of the neurons", "a bias of the MLP output"}
)
POSITIONS = frozenset({"learned positions", "rotary positions"})
ROPE_SCALINGS = frozenset({f"rotary scaling {kind}" for kind in ("linear", "llama3", "yarn", "longrope")})
HEADS = frozenset({"grouped heads", "tied LM head", "an LM head of its own"})
MIXED_MLPS = frozenset({"MLPs of several kinds"})
UNEQUAL = frozenset({"layers of unequal sizes", "layers without heads", "layers without neurons"})
SINGLE_BIASES = frozenset({"biases in some layers only"})
INTEGRATION = frozenset({"skips", "baseline integration"})

# What families beyond GPT-2 and Llama bring.
ROTARY_VARIANTS = frozenset({"rotary positions of a part of each head", "rotary positions in some layers only"}) | {
    "rotary positions that differ between layers",
    "no positions",
}
ATTENTION_VARIANTS = frozenset(
    {
        "attention windows",
        "norms of queries and keys, per head",
        "norms of queries and keys, over all heads",
        "an attention scale of its own",
        "soft caps of attention",
    }
)
BLOCK_VARIANTS = frozenset(
    {"no norms before the halves", "norms after the halves", "parallel halves", "a norm shared by both halves"}
) | {"a scale of what layers add"}
END_VARIANTS = frozenset({"a scale of the embeddings", "a scale of the logits", "a soft cap of the logits"}) | {
    "a bias of the LM head"
}

PLAIN = NORMS | ACTIVATIONS | MLPS | BIASES | POSITIONS | HEADS
EVERY_GROUP = (
    PLAIN
    | ROPE_SCALINGS
    | UNEQUAL
    | MIXED_MLPS
    | SINGLE_BIASES
    | INTEGRATION
    | ROTARY_VARIANTS
    | ATTENTION_VARIANTS
    | BLOCK_VARIANTS
    | END_VARIANTS
)
ALL = EVERY_GROUP  # and groups that not all of those have yet


def features(spec: ModelSpec) -> Features:
    """Everything that a model of that specification needs, each a name of `ALL`."""
    found = set(_of_model(spec))
    for layer in spec.layers:
        found.update(_of_layer(layer))
    found.update(_of_differences(spec))
    if spec.integration is not None and spec.integration.baseline is not None:
        found |= features(spec.integration.baseline)
    assert found <= ALL, found - ALL
    return frozenset(found)


def require_supported(spec: ModelSpec, supported: Collection[str], who: str) -> None:
    """Raise `InputError` that names the first feature of the model that ``who`` does not support."""
    if missing := sorted(features(spec) - frozenset(supported)):
        more = f" (nor {', '.join(missing[1:])})" if len(missing) > 1 else ""
        raise InputError(f"{who} can't do this model: it does not support {missing[0]}{more}")


def _of_model(spec: ModelSpec) -> Iterator[str]:
    yield "LayerNorm" if spec.norm.kind == "layernorm" else "RMSNorm"
    yield "tied LM head" if spec.tied_head else "an LM head of its own"
    block = spec.block
    for name, there in (
        ("learned positions", spec.learned_positions),
        ("a scale of the embeddings", spec.embed_scale != 1.0),
        ("a scale of the logits", spec.logit_scale != 1.0),
        ("a soft cap of the logits", spec.logit_soft_cap is not None),
        ("a bias of the LM head", spec.head_bias),
        ("no norms before the halves", not block.pre_norm),
        ("norms after the halves", block.post_norm),
        ("parallel halves", block.parallel),
        ("a norm shared by both halves", block.shared_norm),
        ("a scale of what layers add", block.residual_scale != 1.0),
        ("skips", spec.integration is not None and spec.integration.skips),
        ("baseline integration", spec.integration is not None and spec.integration.baseline is not None),
    ):
        if there:
            yield name


def _of_layer(layer: LayerSpec) -> Iterator[str]:
    attention, mlp = layer.attention, layer.mlp
    rope = attention.rope
    yield f"activation {mlp.activation}"
    yield "gated MLP" if mlp.gated else "plain MLP"
    for name, there in (
        ("layers without heads", attention.n_head == 0),
        ("layers without neurons", mlp.intermediate_size == 0),
        ("grouped heads", attention.group_size > 1),
        ("rotary positions", rope is not None),
        ("rotary positions of a part of each head", rope is not None and rope.dim_of(layer.head_dim) < layer.head_dim),
        ("attention windows", attention.window is not None),
        ("norms of queries and keys, per head", attention.qk_norm == "head"),
        ("norms of queries and keys, over all heads", attention.qk_norm == "whole"),
        ("an attention scale of its own", attention.scale is not None),
        ("soft caps of attention", attention.soft_cap is not None),
        ("a bias of queries, keys and values", attention.qkv_bias),
        ("a bias of the attention output", attention.out_bias),
        ("a bias of the neurons", mlp.up_bias),
        ("a bias of the MLP output", mlp.down_bias),
    ):
        if there:
            yield name
    if rope is not None and rope.type != "default":
        yield f"rotary scaling {rope.type}"


def _of_differences(spec: ModelSpec) -> Iterator[str]:
    """What follows from layers that are not alike."""
    sizes = {(y.n_head, y.n_kv_head, y.head_dim, y.intermediate_size) for y in spec.layers}
    biases = {
        (y.attention.qkv_bias, y.attention.out_bias, y.mlp.up_bias, y.mlp.down_bias) for y in spec.layers
    }  # fmt: skip
    ropes = {y.attention.rope for y in spec.layers}
    mlps = {(y.mlp.activation, y.mlp.gated) for y in spec.layers}
    for name, there in (
        ("layers of unequal sizes", len(sizes) > 1),
        ("MLPs of several kinds", len(mlps) > 1),
        ("biases in some layers only", len(biases) > 1),
        ("rotary positions in some layers only", None in ropes and len(ropes) > 1),
        ("rotary positions that differ between layers", len(ropes - {None}) > 1),
        ("no positions", ropes == {None} and not spec.learned_positions),
    ):
        if there:
            yield name

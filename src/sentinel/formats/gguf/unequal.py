"""llama.cpp's architecture of unequal layers, ``deci``: a Llama whose heads and neurons are counted layer by layer.

What its graph does not compute as one would think (``src/models/deci.cpp``), and what is written therefore:

- head sizes are read only if the first layer has heads: it keeps one whose output is zero;
- a layer without heads skips the bias of its attention output: that is added by the layer before;
- a layer without neurons loses what its attention gives: it keeps one neuron of zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from sentinel.errors import InputError
from sentinel.formats.gguf.held import Held, require_same, who
from sentinel.formats.gguf.rewriting import (
    in_blocks,
    one_head_size,
    padded,
    with_biases,
    with_scaled_queries,
    without_attention_biases,
)
from sentinel.formats.gguf.rope import Values, rope_fields, rope_parameters
from sentinel.models.families.config import ConfigReader
from sentinel.models.families.gguf import PAIRS, UNEQUAL_LAYERS, GGUFFields
from sentinel.models.families.rope import rope_from
from sentinel.models.families.weights import State, fuse_qkv, split_qkv
from sentinel.models.features import (
    BIASES,
    HEADS,
    ROPE_SCALINGS,
    SINGLE_BIASES,
    UNEQUAL,
    require_supported,
)
from sentinel.models.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, NormSpec
from sentinel.models.tensors import with_scales_folded

SUPPORTS = (
    BIASES
    | HEADS
    | ROPE_SCALINGS
    | SINGLE_BIASES
    | UNEQUAL
    | {"RMSNorm", "activation silu", "gated MLP", "rotary positions"}
    # These scales become part of the weights.
    | {"an attention scale of its own", "a scale of the embeddings", "a scale of the logits"}
    | {"a scale of what layers add"}
)
NAME = who(UNEQUAL_LAYERS)
OF_HEADS = {"attn_q": "q", "attn_k": "k", "attn_v": "v"}
OF_NEURONS = {"ffn_gate": "gate_proj", "ffn_up": "up_proj"}
ENDS = {
    "token_embd.weight": "embed.weight",
    "output_norm.weight": "final_norm.weight",
    "output.weight": "lm_head.weight",
}


# --- written ---------------------------------------------------------------------------------------------------------


def held(spec: ModelSpec, state: State, block: int) -> Held:
    """The model as this architecture holds it, with neurons in blocks of ``block``; `InputError` for what it can't do."""
    require_supported(spec, SUPPORTS, NAME)
    head_dim = one_head_size(spec, NAME)
    spec, state = _with_scales_folded(spec, with_scales_folded(state, spec))
    spec, state = _with_moved_biases(spec, state)
    groups = [max(layer.n_kv_head, int(index == 0)) for index, layer in enumerate(spec.layers)]
    neurons = [in_blocks(max(layer.intermediate_size, 1), block) for layer in spec.layers]
    spec, state = padded(spec, state, groups, neurons, group_size=1)
    rope = next(layer.attention.rope for layer in spec.layers if layer.attention.rope is not None)
    of_rope, extra = rope_fields(rope, head_dim)
    fields: dict[str, Any] = {
        "block_count": spec.n_layer,
        "context_length": spec.max_seq_len,
        "embedding_length": spec.n_embd,
        "vocab_size": spec.vocab_size,
        "feed_forward_length": [layer.intermediate_size for layer in spec.layers],
        "attention.head_count": [layer.n_head for layer in spec.layers],
        "attention.head_count_kv": [layer.n_kv_head for layer in spec.layers],
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": spec.norm.eps,
        **of_rope,
    }
    made = Held(UNEQUAL_LAYERS, spec, state, fields, extra, lambda values: _tensors(spec, values))
    reader = GGUFFields(NAME, UNEQUAL_LAYERS, fields, made.names())
    require_same(spec, read_spec(reader, lambda name: extra[name], spec.vocab_size), UNEQUAL_LAYERS)
    return made


def _with_scales_folded(spec: ModelSpec, state: State) -> tuple[ModelSpec, State]:
    """The model without scales of embeddings, scores, residuals and logits; the latter two are folded already."""
    state = dict(state)
    if spec.embed_scale != 1.0:
        if spec.tied_head:
            state["lm_head.weight"] = state["embed.weight"]
        state["embed.weight"] = state["embed.weight"] * spec.embed_scale
        spec = replace(spec, tied_head=False, embed_scale=1.0)
    spec, state = with_scaled_queries(spec, state, [None] * spec.n_layer)
    return replace(spec, block=replace(spec.block, residual_scale=1.0), logit_scale=1.0), state


def _with_moved_biases(spec: ModelSpec, state: State) -> tuple[ModelSpec, State]:
    """The bias of the attention output of a layer without heads, which nothing reads before the next norm, is added by the
    MLP of the layer before. The first layer keeps it, and a head."""
    empty = [index for index, layer in enumerate(spec.layers) if index and not layer.n_head]
    moved = [index for index in empty if spec.layers[index].attention.out_bias]
    down = [layer.mlp.down_bias or index + 1 in moved for index, layer in enumerate(spec.layers)]
    spec, state = with_biases(spec, state, [{"down_bias": there} for there in down])
    state = dict(state)
    for index in moved:
        before = f"layers.{index - 1}.mlp.down_proj.bias"
        state[before] = state[before] + state.pop(f"layers.{index}.attn.out_proj.bias")
    return without_attention_biases(spec, empty), state


def _tensors(spec: ModelSpec, state: State) -> Iterator[tuple[str, Tensor]]:
    for theirs, ours in ENDS.items():
        if ours in state:
            yield theirs, state[ours]
    for index, layer in enumerate(spec.layers):
        ours, theirs = f"layers.{index}", f"blk.{index}"
        if layer.n_head:
            yield f"{theirs}.attn_norm.weight", state[f"{ours}.attn_norm.weight"]
            for part in ("weight", "bias") if layer.attention.qkv_bias else ("weight",):
                query, key, value = split_qkv(state[f"{ours}.attn.qkv_proj.{part}"], layer)
                yield f"{theirs}.attn_q.{part}", PAIRS.write(query, layer)
                yield f"{theirs}.attn_k.{part}", PAIRS.write(key, layer)
                yield f"{theirs}.attn_v.{part}", value
            for part in ("weight", "bias") if layer.attention.out_bias else ("weight",):
                yield f"{theirs}.attn_output.{part}", state[f"{ours}.attn.out_proj.{part}"]
        yield f"{theirs}.ffn_norm.weight", state[f"{ours}.mlp_norm.weight"]
        for kind, name in {**OF_NEURONS, "ffn_down": "down_proj"}.items():
            bias = layer.mlp.down_bias if kind == "ffn_down" else layer.mlp.up_bias
            for part in ("weight", "bias") if bias else ("weight",):
                yield f"{theirs}.{kind}.{part}", state[f"{ours}.mlp.{name}.{part}"]


# --- read ------------------------------------------------------------------------------------------------------------


def read_spec(fields: GGUFFields, values: Values, vocab_size: int) -> ModelSpec:
    """The specification that the fields and the names of the tensors tell; `InputError` for what is not supported."""
    n_layer, context = fields.count("block_count"), fields.count("context_length")
    heads = fields.counts("attention.head_count", n_layer)
    groups = fields.counts("attention.head_count_kv", n_layer)
    head_dim = fields.count("attention.key_length", fields.count("embedding_length") // heads[0] if heads[0] else None)
    fields.only("attention.value_length", head_dim)
    neurons = fields.counts("feed_forward_length", n_layer)
    given = rope_parameters(fields, values, head_dim, context, "whole")
    rope = rope_from(ConfigReader("llama", {}), given, context, head_dim)
    layers: list[LayerSpec] = []
    for index in range(n_layer):
        if heads[index] and not groups[index]:
            raise InputError(f"{fields.path}: layer {index} has a linear map for its attention, which is not supported")

        def has(*kinds: str, index: int = index) -> bool:
            return any(f"blk.{index}.{kind}.bias" in fields.tensors for kind in kinds)

        attention = AttentionSpec(
            heads[index],
            groups[index] if heads[index] else 0,
            head_dim,
            rope=rope,
            qkv_bias=has(*OF_HEADS),
            out_bias=has("attn_output") and heads[index] > 0,  # llama.cpp skips it too
        )
        mlp = MlpSpec(neurons[index], "silu", gated=True, up_bias=has(*OF_NEURONS), down_bias=has("ffn_down"))
        layers.append(LayerSpec(attention, mlp))
    norm = NormSpec("rmsnorm", fields.number("attention.layer_norm_rms_epsilon"))
    width, tied = fields.count("embedding_length"), "output.weight" not in fields.tensors
    fields.done()
    return ModelSpec("llama", vocab_size, width, context, tuple(layers), norm, tied_head=tied)


def read_state(spec: ModelSpec, tensors: Mapping[str, Tensor]) -> State:
    """The decoder's state, of the tensors of a file by their names; those that a layer need not have are 0, norms 1.

    Raises `InputError` that names a tensor which is missing or which nothing asks for.
    """
    left = dict(tensors)

    def take(name: str, default: Tensor | None = None) -> Tensor:
        found = left.pop(name, default)
        if found is None:
            raise InputError(f"the weights lack the tensor {name!r} that the fields ask for")
        return found

    state = {ours: take(theirs) for theirs, ours in ENDS.items() if ours != "lm_head.weight" or not spec.tied_head}
    like = state["embed.weight"]
    ones, nothing = like.new_ones(spec.n_embd), like.new_zeros(spec.n_embd)
    for index, layer in enumerate(spec.layers):
        ours, theirs = f"layers.{index}", f"blk.{index}"
        state[f"{ours}.attn.gate"] = like.new_ones(layer.n_head)
        state[f"{ours}.attn_norm.weight"] = take(f"{theirs}.attn_norm.weight", None if layer.n_head else ones.clone())
        state[f"{ours}.mlp_norm.weight"] = take(
            f"{theirs}.ffn_norm.weight", None if layer.intermediate_size else ones.clone()
        )
        state.update(_attention(index, layer, nothing, take))
        if not layer.n_head:
            left.pop(f"{theirs}.attn_output.bias", None)
        for kind, name in OF_NEURONS.items():
            empty = like.new_zeros(0, spec.n_embd)
            state[f"{ours}.mlp.{name}.weight"] = take(
                f"{theirs}.{kind}.weight", None if layer.intermediate_size else empty
            )
            if layer.mlp.up_bias:
                zeros = like.new_zeros(layer.intermediate_size)
                state[f"{ours}.mlp.{name}.bias"] = take(f"{theirs}.{kind}.bias", zeros)
        empty = like.new_zeros(spec.n_embd, 0)
        down = take(f"{theirs}.ffn_down.weight", None if layer.intermediate_size else empty)
        state[f"{ours}.mlp.down_proj.weight"] = down
        if layer.mlp.down_bias:
            state[f"{ours}.mlp.down_proj.bias"] = take(f"{theirs}.ffn_down.bias", nothing.clone())
    if left:
        raise InputError(f"GGUF tensor {min(left)!r} is not supported in the architecture {UNEQUAL_LAYERS}")
    return state


def _attention(index: int, layer: LayerSpec, zeros: Tensor, take: Any) -> State:
    """Projections of the attention of a layer; those of no heads are empty. ``zeros`` are as wide as the model [C]."""
    theirs, ours = f"blk.{index}", f"layers.{index}.attn"
    rows = {"attn_q": layer.n_head, "attn_k": layer.n_kv_head, "attn_v": layer.n_kv_head}
    found: State = {}
    for part in ("weight", "bias") if layer.attention.qkv_bias else ("weight",):
        shape = zeros.shape if part == "weight" else ()
        parts: list[Tensor] = []
        for kind, count in rows.items():
            default = zeros.new_zeros(count * layer.head_dim, *shape) if part == "bias" or not layer.n_head else None
            parts.append(take(f"{theirs}.{kind}.{part}", default))
        try:
            query, key = (PAIRS.read(turned, layer) for turned in parts[:2])
            found[f"{ours}.qkv_proj.{part}"] = fuse_qkv(query, key, parts[2], layer)
        except RuntimeError as error:
            raise InputError(f"GGUF tensor '{theirs}.attn_q.{part}' does not fit the heads of layer {index}") from error
    empty = zeros.new_zeros(len(zeros), 0)
    found[f"{ours}.out_proj.weight"] = take(f"{theirs}.attn_output.weight", None if layer.n_head else empty)
    if layer.attention.out_bias:
        found[f"{ours}.out_proj.bias"] = take(f"{theirs}.attn_output.bias", zeros.clone())
    return found

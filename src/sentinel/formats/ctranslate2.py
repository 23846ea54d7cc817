# pyright: standard
# Not strict: what it imports is an extra, which is unknown where it is not installed.
"""Writes a decoder as a CTranslate2 model folder, in fp32 or int8; token ids stand for their own text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ctranslate2.specs import attention_spec, common_spec, transformer_spec  # pyright: ignore
from torch import Tensor, nn

from sentinel.models.decoder import Decoder
from sentinel.models.families.weights import split_qkv
from sentinel.models.features import PLAIN, require_supported
from sentinel.models.parts.block import Block
from sentinel.models.parts.linear import bias_of
from sentinel.models.spec import ModelSpec
from sentinel.models.tensors import with_gates_folded

ACTIVATIONS = {
    "gelu_new": common_spec.Activation.GELUTanh,
    "gelu": common_spec.Activation.GELU,
    "silu": common_spec.Activation.SWISH,
    "relu": common_spec.Activation.RELU,
}

# Of llama3's rotary scaling it fixes a part, so that this is left out.
SUPPORTS = PLAIN | {"rotary scaling linear"}


def write_model(decoder: Decoder, folder: Path, quantization: str | None) -> int:
    """Write ``decoder`` to ``folder``; returns the bytes of weights that one decoded token reads.

    Raises `InputError` for what it does not have, such as unequal layers.
    """
    spec = decoder.spec
    require_supported(spec, SUPPORTS, "ctranslate2")
    made = transformer_spec.TransformerDecoderModelSpec.from_config(**_settings(spec))
    _fill(made.decoder, decoder)
    made.register_vocabulary([str(token) for token in range(spec.vocab_size)])
    config: Any = made.config  # declared as None in the class
    config.layer_norm_epsilon = spec.norm.eps
    config.unk_token = config.bos_token = "0"
    # Generation runs to the asked length, where this token is ruled out. The last one may be a real end of text.
    config.eos_token = str(spec.vocab_size - 2)
    made.validate()
    made.optimize(quantization=quantization)
    folder.mkdir()
    made.save(str(folder))
    return _streamed_bytes(made, spec)


def _settings(spec: ModelSpec) -> dict[str, Any]:
    layer = spec.layers[0]
    settings: dict[str, Any] = {
        "num_layers": spec.n_layer,
        "num_heads": layer.n_head,
        "activation": ACTIVATIONS[layer.mlp.activation],
        "ffn_glu": layer.mlp.gated,
        "rms_norm": spec.norm.kind == "rmsnorm",
    }
    rope = layer.attention.rope
    if rope is not None:
        settings.update(rotary_dim=0, rotary_interleave=False, rotary_base=rope.theta, head_dim=layer.head_dim)
        if rope.type == "linear":
            linear = attention_spec.RotaryScalingType.Linear
            settings.update(rotary_scaling_type=linear, rotary_scaling_factor=rope.factor)
    if layer.n_kv_head != layer.n_head:
        settings["num_heads_kv"] = layer.n_kv_head
    return settings


def _fill(theirs: Any, decoder: Decoder) -> None:
    theirs.scale_embeddings = False
    theirs.embeddings.weight = _array(decoder.embed.weight)
    if decoder.positions is not None:
        theirs.position_encodings.encodings = _array(decoder.positions.weight)
    _fill_norm(theirs.layer_norm, decoder.final_norm)
    theirs.projection.weight = _array(decoder.head.weight)
    folded = with_gates_folded(decoder.state_dict(), decoder.spec)
    for index, (layer, block) in enumerate(zip(theirs.layer, decoder.blocks, strict=True)):
        _fill_block(layer, block, folded[f"layers.{index}.attn.out_proj.weight"])


def _fill_block(theirs: Any, block: Block, out_weight: Tensor) -> None:
    """``out_weight`` is the output projection with the gates in it."""
    attn, mlp = block.attn, block.mlp
    _fill_norm(theirs.self_attention.layer_norm, block.attn_norm)
    _fill_norm(theirs.ffn.layer_norm, block.mlp_norm)
    fused, out = theirs.self_attention.linear
    fused.weight = np.concatenate([_array(part) for part in split_qkv(attn.qkv_proj.weight, attn.layer)])
    bias = bias_of(attn.qkv_proj)
    if bias is not None:
        fused.bias = np.concatenate([_array(part) for part in split_qkv(bias, attn.layer)])
    _fill_linear(out, out_weight, bias_of(attn.out_proj))
    _fill_linear(theirs.ffn.linear_1, mlp.down_proj.weight, bias_of(mlp.down_proj))
    if mlp.gate_proj is None:
        _fill_linear(theirs.ffn.linear_0, mlp.up_proj.weight, bias_of(mlp.up_proj))
    else:
        _fill_linear(theirs.ffn.linear_0, mlp.gate_proj.weight, bias_of(mlp.gate_proj))
        _fill_linear(theirs.ffn.linear_0_noact, mlp.up_proj.weight, bias_of(mlp.up_proj))


def _fill_linear(theirs: Any, weight: Tensor, bias: Tensor | None) -> None:
    theirs.weight = _array(weight)
    if bias is not None:
        theirs.bias = _array(bias)


def _fill_norm(theirs: Any, norm: nn.Module | None) -> None:
    assert norm is not None
    vectors = dict(norm.named_parameters())
    theirs.gamma = _array(vectors["weight"])
    if "bias" in vectors:
        theirs.beta = _array(vectors["bias"])


def _array(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A copy: quantisation works in place."""
    return np.array(tensor.detach().float().cpu().numpy())


def _streamed_bytes(made: Any, spec: ModelSpec) -> int:
    """Bytes of all variables, of tables but one row. A tied head is an alias of the embedding and read whole."""
    streamed = 0
    for name, value in made.variables(ordered=True):
        if isinstance(value, str):  # an alias of another variable
            continue
        looked_up = "/position_encodings/" in name or ("/embeddings/" in name and not spec.tied_head)
        streamed += value.num_bytes() // (value.shape[0] if looked_up else 1)
    return streamed

"""Writes a decoder as a GGUF file for llama.cpp: GPT-2 and Llama architectures, fp32, Q8_0 or Q4_0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sentinel.errors import InputError
from sentinel.formats.hugging_face.model import to_hugging_face
from sentinel.models.decoder import Decoder
from sentinel.models.features import BIASES, HEADS, require_supported
from sentinel.models.rotary import frequencies
from sentinel.models.spec import ModelSpec

ARCHITECTURES = {"gpt2": gguf.MODEL_ARCH.GPT2, "llama": gguf.MODEL_ARCH.LLAMA}
SUPPORTS = {  # llama.cpp has one activation for each architecture
    "gpt2": BIASES | HEADS - {"grouped heads"} | {"LayerNorm", "activation gelu_new", "plain MLP", "learned positions"},
    "llama": BIASES
    | HEADS
    | {"RMSNorm", "activation silu", "gated MLP", "rotary positions"}
    | {"rotary scaling linear", "rotary scaling llama3"},
}
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # Hugging Face's GPT-2 keeps these as [in, out]


def write_gguf(decoder: Decoder, path: Path, kind: gguf.GGMLQuantizationType) -> int:
    """Write ``decoder`` with matrices of ``kind``; returns the bytes of weights that one decoded token reads.

    Vectors stay in fp32, and so do matrices whose rows do not divide into blocks. There is no vocabulary in the file:
    token ids go in and come out. Raises `InputError` for what llama.cpp's architectures do not have.
    """
    spec = decoder.spec
    if spec.family not in ARCHITECTURES:
        raise InputError(f"llama.cpp's files of family {spec.family} are not written; those of gpt2 and llama are")
    require_supported(spec, SUPPORTS[spec.family], f"llama.cpp's architecture {spec.family}")
    architecture = ARCHITECTURES[spec.family]
    names = gguf.get_tensor_name_map(architecture, spec.n_layer)
    writer = gguf.GGUFWriter(str(path), gguf.MODEL_ARCH_NAMES[architecture])
    _add_settings(writer, spec)
    streamed = 0
    for name, tensor in _tensors(decoder).items():
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if theirs is None:
            raise InputError(f"llama.cpp has no place for the tensor {name!r}")
        array = _as_stored(name, tensor.float().cpu().numpy(), spec)
        data, stored = _quantised(array, kind)
        writer.add_tensor(theirs, data, raw_dtype=stored)
        looked_up = theirs == "position_embd.weight" or (theirs == "token_embd.weight" and not spec.tied_head)
        streamed += data.nbytes // array.shape[0] if looked_up else data.nbytes
    rope = spec.layers[0].attention.rope
    if rope is not None and rope.type == "llama3":
        writer.add_tensor("rope_freqs.weight", _rope_factors(spec))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return streamed


def _add_settings(writer: gguf.GGUFWriter, spec: ModelSpec) -> None:
    layer = spec.layers[0]
    writer.add_context_length(spec.max_seq_len)
    writer.add_embedding_length(spec.n_embd)
    writer.add_block_count(spec.n_layer)
    writer.add_feed_forward_length(layer.intermediate_size)
    writer.add_head_count(layer.n_head)
    writer.add_head_count_kv(layer.n_kv_head)
    writer.add_key_length(layer.head_dim)
    writer.add_value_length(layer.head_dim)
    writer.add_vocab_size(spec.vocab_size)
    writer.add_tokenizer_model("none")
    rope = layer.attention.rope
    if rope is None:
        writer.add_layer_norm_eps(spec.norm.eps)
    else:
        writer.add_layer_norm_rms_eps(spec.norm.eps)
        writer.add_rope_dimension_count(layer.head_dim)
        writer.add_rope_freq_base(rope.theta)
        if rope.type == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope.factor)
        elif rope.type == "llama3":  # llama.cpp goes by `rope_freqs.weight` alone; readers of it by this too
            writer.add_rope_scaling_orig_ctx_len(rope.original_max_seq_len)


def _tensors(decoder: Decoder) -> dict[str, Tensor]:
    """Hugging Face's tensors, with gates folded and the tied head once."""
    state = to_hugging_face(decoder).state_dict()
    return {name: t for name, t in state.items() if not (decoder.spec.tied_head and name == "lm_head.weight")}


def _as_stored(name: str, array: NDArray[np.float32], spec: ModelSpec) -> NDArray[np.float32]:
    """llama.cpp's orientation and, for rotary queries and keys, its order of rows: both halves of a head interleaved."""
    layer = spec.layers[0]
    if spec.family == "gpt2":
        return np.ascontiguousarray(np.transpose(array)) if name.endswith(TRANSPOSED) else array
    heads = {"q_proj": layer.n_head, "k_proj": layer.n_kv_head}.get(name.split(".")[-2])
    if heads is None:
        return array
    halves = np.reshape(array, (heads, 2, layer.head_dim // 2, *array.shape[1:]))
    return np.reshape(np.ascontiguousarray(np.swapaxes(halves, 1, 2)), array.shape)


def _quantised(array: NDArray[np.float32], kind: gguf.GGMLQuantizationType) -> tuple[NDArray[Any], Any]:
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    if array.ndim == 1 or array.shape[-1] % block:
        kind = gguf.GGMLQuantizationType.F32
    return gguf.quantize(array, kind), kind


def _rope_factors(spec: ModelSpec) -> NDArray[np.float32]:
    """What llama.cpp divides the plain rotary frequencies by."""
    rope, dim = spec.layers[0].attention.rope, spec.layers[0].head_dim
    assert rope is not None
    plain = type(rope)(rope.theta)
    return frequencies(plain, dim) / frequencies(rope, dim)

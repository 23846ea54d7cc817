"""Reads a GGUF file of llama architecture: config, weights de-quantised to fp32, byte-level BPE tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from sentinel.errors import InputError
from sentinel.models.families.weights import State
from sentinel.progress import track

WEIGHT_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class GGUFFile:
    """An opened GGUF file. Raises `InputError` for a damaged file and for another architecture."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._reader: Any = gguf.GGUFReader(str(path))
        except (ValueError, IndexError, KeyError, OverflowError, OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is damaged, truncated or not a GGUF file ({error})") from error
        architecture = self._get("general.architecture")
        if architecture != "llama":
            raise InputError(f"{path}: GGUF architecture {architecture!r} is not supported; llama is")

    def _get(self, key: str, default: Any = None) -> Any:
        field = self._reader.fields.get(key)
        if field is None and default is None:
            raise InputError(f"{self.path}: GGUF field {key!r} is missing")
        return default if field is None else field.contents()

    def config(self) -> dict[str, Any]:
        """The file's settings as a Hugging Face Llama config."""
        if "llama.rope.scaling.type" in self._reader.fields:
            raise InputError(f"{self.path}: GGUF field 'llama.rope.scaling.type' is not supported")
        names = {tensor.name for tensor in self._reader.tensors}
        heads, width = self._get("llama.attention.head_count"), self._get("llama.embedding_length")
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": len(self._get("tokenizer.ggml.tokens")),
            "hidden_size": width,
            "intermediate_size": self._get("llama.feed_forward_length"),
            "num_hidden_layers": self._get("llama.block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._get("llama.attention.head_count_kv", heads),
            "head_dim": self._get("llama.attention.key_length", width // heads),
            "max_position_embeddings": self._get("llama.context_length"),
            "rms_norm_eps": round(float(self._get("llama.attention.layer_norm_rms_epsilon")), 12),
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": "output.weight" not in names,
            "bos_token_id": self._get("tokenizer.ggml.bos_token_id", 0),
            "eos_token_id": self._get("tokenizer.ggml.eos_token_id"),
            "pad_token_id": self._get("tokenizer.ggml.padding_token_id", self._get("tokenizer.ggml.eos_token_id")),
            "rope_parameters": {"rope_type": "default", "rope_theta": float(self._get("llama.rope.freq_base", 1e4))},
            "dtype": "float32",
        }

    def weights(self) -> State:
        """All tensors in fp32 under Hugging Face's Llama names."""
        state: State = {}
        tensors = self._reader.tensors
        heads = self._get("llama.attention.head_count")
        kv_heads = self._get("llama.attention.head_count_kv", heads)
        for tensor in track(tensors, "De-quantising", len(tensors)):
            try:
                flat = gguf.dequantize(tensor.data, tensor.tensor_type)
            except NotImplementedError as error:
                raise InputError(
                    f"{self.path}: {tensor.name} is of type {tensor.tensor_type.name}, which can't be de-quantised"
                ) from error
            weight = np.array(flat, dtype=np.float32).reshape([int(n) for n in reversed(tensor.shape.tolist())])
            kind = tensor.name.split(".")[2] if tensor.name.startswith("blk.") else tensor.name
            if kind in ("attn_q", "attn_k"):
                weight = _undo_rotary_order(weight, heads if kind == "attn_q" else kv_heads)
            state[self._name(tensor.name)] = torch.from_numpy(np.ascontiguousarray(weight))
        return state

    def _name(self, name: str) -> str:
        parts = name.split(".")
        kind = parts[2] if parts[0] == "blk" and len(parts) == 4 else name
        if kind not in WEIGHT_NAMES:
            raise InputError(f"{self.path}: GGUF tensor {name!r} is not supported")
        return f"model.layers.{parts[1]}.{WEIGHT_NAMES[kind]}.{parts[3]}" if kind != name else WEIGHT_NAMES[name]

    def tokenizer(self) -> Tokenizer:
        """The byte-level BPE tokenizer stored in the file."""
        kind, split = self._get("tokenizer.ggml.model"), self._get("tokenizer.ggml.pre", "default")
        if kind != "gpt2" or split not in ("smollm", "gpt-2"):
            raise InputError(
                f"{self.path}: its tokenizer ({kind!r}, pre-tokenizer {split!r}) is not supported; byte-level BPE "
                "with pre-tokenizer 'smollm' or 'gpt-2' is"
            )
        tokens, kinds = self._get("tokenizer.ggml.tokens"), self._get("tokenizer.ggml.token_type")
        merges = [tuple(merge.split(" ", 1)) for merge in self._get("tokenizer.ggml.merges")]
        tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))  # pyright: ignore
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        if split == "smollm":  # every digit alone, then GPT-2's split
            digits = pre_tokenizers.Digits(individual_digits=True)
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
        else:
            tokenizer.pre_tokenizer = byte_level
        tokenizer.decoder = decoders.ByteLevel()
        control = gguf.TokenType.CONTROL
        special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == control]
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
        return tokenizer

    def tokenizer_config(self) -> dict[str, Any]:
        """What Hugging Face's ``tokenizer_config.json`` says of the tokenizer."""
        tokens = self._get("tokenizer.ggml.tokens")
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
            index = self._reader.fields.get(f"tokenizer.ggml.{theirs}_token_id")
            if index is not None:
                config[f"{ours}_token"] = tokens[index.contents()]
        template = self._reader.fields.get("tokenizer.chat_template")
        if template is not None:
            config["chat_template"] = template.contents()
        config["model_max_length"] = self._get("llama.context_length")
        return config


def _undo_rotary_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF interleaves the two halves of every q and k head; Hugging Face keeps them apart."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, half, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)

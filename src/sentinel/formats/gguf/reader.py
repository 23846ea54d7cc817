"""Reads a GGUF file of llama architecture: config, weights de-quantised to fp32, and its tokenizer."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer

from sentinel.errors import InputError
from sentinel.formats.gguf.tokenizer import build_tokenizer
from sentinel.models.families.weights import State
from sentinel.models.rotary import frequencies
from sentinel.models.spec import RopeSpec
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
ATTENTION, MLP = ("attn_q", "attn_k", "attn_v", "attn_output"), ("ffn_gate", "ffn_up", "ffn_down")
ROPE_FREQUENCIES = "rope_freqs.weight"  # divisors of the rotary frequencies [D / 2]: the llama3 scaling, written out
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}  # of every published Llama 3; a file does not tell them
KNOWN = {
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "tensor_data_layout",
    "vocab_size",
}
WITHOUT_EFFECT = {
    "attention.causal": True,
    "attention.sliding_window": 0,
    "embedding_scale": 1.0,
    "expert_count": 0,
    "expert_used_count": 0,
    "logit_scale": 1.0,
    "residual_scale": 1.0,
    "rope.scaling.attn_factor": 1.0,
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
        for key in self._reader.fields:
            name = key.removeprefix("llama.")
            if name == key or name in KNOWN:
                continue
            if name not in WITHOUT_EFFECT or self._get(key) != WITHOUT_EFFECT[name]:
                raise InputError(f"{path}: GGUF field {key!r} is not supported")
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        if "token_embd.weight" not in self._tensors:
            raise InputError(f"{path}: GGUF tensor 'token_embd.weight' is missing")

    def _get(self, key: str, default: Any = None) -> Any:
        field = self._reader.fields.get(key)
        if field is None and default is None:
            raise InputError(f"{self.path}: GGUF field {key!r} is missing")
        return default if field is None else field.contents()

    def _number(self, key: str, default: Any = None) -> float:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InputError(f"{self.path}: GGUF field {key!r} must be a number, not {value!r}")
        return float(value)

    def _count(self, name: str, default: Any = None) -> int:
        """A size of all layers; a list of one per layer must hold a single value."""
        key = f"llama.{name}"
        value = self._get(key, default)
        values = set(value) if isinstance(value, list) else {value}
        if len(values) != 1:
            raise InputError(f"{self.path}: GGUF field {key!r} differs between layers, which is not supported")
        count = values.pop()
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(f"{self.path}: GGUF field {key!r} must be a whole number of at least 1, not {count!r}")
        return count

    def config(self) -> dict[str, Any]:
        """The file's settings as a Hugging Face Llama config."""
        heads, width = self._count("attention.head_count"), self._count("embedding_length")
        head_dim = self._count("attention.key_length", width // heads)
        for name in ("attention.value_length", "rope.dimension_count"):
            if self._get(f"llama.{name}", head_dim) != head_dim:
                raise InputError(
                    f"{self.path}: GGUF field 'llama.{name}' other than the head size {head_dim} is not supported"
                )
        config = {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": int(self._tensors["token_embd.weight"].shape[1]),
            "hidden_size": width,
            "intermediate_size": self._count("feed_forward_length"),
            "num_hidden_layers": self._get("llama.block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._count("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "max_position_embeddings": self._get("llama.context_length"),
            "rms_norm_eps": round(self._number("llama.attention.layer_norm_rms_epsilon"), 12),
            "hidden_act": "silu",
            "attention_bias": self._has_bias(ATTENTION),
            "mlp_bias": self._has_bias(MLP),
            "tie_word_embeddings": "output.weight" not in self._tensors,
            "rope_parameters": self._rope(head_dim),
            "dtype": "float32",
        }
        ends = self.eos_ids()
        if ends:
            config["eos_token_id"] = ends[0] if len(ends) == 1 else list(ends)
        for ours, theirs, default in (("bos", "bos", 0), ("pad", "padding", ends[0] if ends else 0)):
            config[f"{ours}_token_id"] = self._get(f"tokenizer.ggml.{theirs}_token_id", default)
        return config

    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end a text, a turn or a message."""
        keys = (f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
        return tuple(dict.fromkeys(int(self._get(key)) for key in keys if key in self._reader.fields))

    def description(self) -> str:
        """What the file's name may leave out: that its weights are rounded ones, most used type first."""
        kinds = Counter(tensor.tensor_type.name for tensor in self._tensors.values())
        rounded = [kind for kind, _ in kinds.most_common() if kind not in ("F64", "F32", "F16", "BF16")]
        return f"de-quantised from {' and '.join(rounded)}" if rounded else ""

    def _has_bias(self, kinds: tuple[str, ...]) -> bool:
        return any(name.split(".")[2:] in [[kind, "bias"] for kind in kinds] for name in self._tensors)

    def _rope(self, head_dim: int) -> dict[str, Any]:
        """Rotary settings; a factor without a type is linear, as in llama.cpp, and has an older name."""
        theta, older = self._number("llama.rope.freq_base", 1e4), self._number("llama.rope.scale_linear", 0.0)
        factor = self._number("llama.rope.scaling.factor", 0.0) or older
        kind = self._get("llama.rope.scaling.type", "linear")
        if kind not in ("none", "linear"):
            raise InputError(f"{self.path}: rotary scaling {kind!r} is not supported (none and linear are)")
        linear = kind == "linear" and factor not in (0.0, 1.0)
        if ROPE_FREQUENCIES in self._tensors:
            if linear:
                raise InputError(
                    f"{self.path}: tensor {ROPE_FREQUENCIES!r} beside a linear rotary scaling is not supported"
                )
            return self._llama3(theta, head_dim)
        scaling = {"rope_type": "linear", "factor": factor} if linear else {"rope_type": "default"}
        return {**scaling, "rope_theta": theta}

    def _llama3(self, theta: float, head_dim: int) -> dict[str, Any]:
        """The settings whose frequencies are those that the file lists."""
        divisors = np.array(self._dequantise(self._tensors[ROPE_FREQUENCIES]), dtype=np.float64).reshape(-1)
        plain = frequencies(RopeSpec(theta), head_dim).astype(np.float64)
        if divisors.shape != plain.shape or not (divisors > 0).all():
            raise InputError(f"{self.path}: tensor {ROPE_FREQUENCIES!r} does not fit heads of size {head_dim}")
        if (divisors == 1).all():
            return {"rope_type": "default", "rope_theta": theta}
        low, high, factor = *LLAMA3.values(), float(divisors.max())
        between = (divisors > 1) & (divisors < factor)
        smooth = (1 / divisors[between] - 1 / factor) / (1 - 1 / factor)
        solved = np.round(2 * np.pi / plain[between] * (smooth * (high - low) + low)).astype(int)
        for length in (self._get("llama.rope.scaling.original_context_length", 8192), 8192, *solved.tolist()):
            spec = RopeSpec(
                theta,
                "llama3",
                factor=factor,
                low_freq_factor=low,
                high_freq_factor=high,
                original_max_seq_len=length,
            )
            if np.allclose(frequencies(spec, head_dim).astype(np.float64), plain / divisors, rtol=1e-4):
                settings = {"rope_type": "llama3", "factor": factor, **LLAMA3, "rope_theta": theta}
                return {**settings, "original_max_position_embeddings": int(length)}
        raise InputError(
            f"{self.path}: tensor {ROPE_FREQUENCIES!r} is not the scaling of Llama 3, the only one supported"
        )

    def _dequantise(self, tensor: Any) -> np.ndarray:
        try:
            flat = gguf.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise InputError(
                f"{self.path}: {tensor.name} is of type {tensor.tensor_type.name}, which can't be de-quantised"
            ) from error
        return np.array(flat, dtype=np.float32).reshape([int(n) for n in reversed(tensor.shape.tolist())])

    def weights(self) -> State:
        """All tensors in fp32 under Hugging Face's Llama names; a bias that only some projections have is 0 in others."""
        state: State = {}
        heads = self._count("attention.head_count")
        turned = {"attn_q": heads, "attn_k": self._count("attention.head_count_kv", heads)}
        names = [name for name in self._tensors if name != ROPE_FREQUENCIES]
        for name in track(names, "De-quantising", len(names)):
            weight = self._dequantise(self._tensors[name])
            kind = name.split(".")[2] if name.startswith("blk.") else name
            if kind in turned:
                weight = self._undo_rotary_order(weight, turned[kind], name)
            state[self._name(name)] = torch.from_numpy(np.ascontiguousarray(weight))
        for kinds in (ATTENTION, MLP):
            if self._has_bias(kinds):
                self._fill_biases(state, kinds)
        return state

    @staticmethod
    def _fill_biases(state: State, kinds: tuple[str, ...]) -> None:
        for name in [n for n in state if any(n.endswith(f"{WEIGHT_NAMES[kind]}.weight") for kind in kinds)]:
            state.setdefault(name.removesuffix("weight") + "bias", torch.zeros(len(state[name]), device="cpu"))

    def _name(self, name: str) -> str:
        parts = name.split(".")
        kind = parts[2] if parts[0] == "blk" and len(parts) == 4 else name
        if kind not in WEIGHT_NAMES:
            raise InputError(f"{self.path}: GGUF tensor {name!r} is not supported")
        return f"model.layers.{parts[1]}.{WEIGHT_NAMES[kind]}.{parts[3]}" if kind != name else WEIGHT_NAMES[name]

    def _undo_rotary_order(self, weight: np.ndarray, heads: int, name: str) -> np.ndarray:
        """GGUF interleaves the two halves of every q and k head [rows, ...]; Hugging Face keeps them apart."""
        if heads < 1 or len(weight) % (2 * heads):
            raise InputError(f"{self.path}: GGUF tensor {name!r} does not fit {heads} heads")
        half, rest = len(weight) // heads // 2, weight.shape[1:]
        return weight.reshape(heads, half, 2, *rest).swapaxes(1, 2).reshape(weight.shape)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer stored in the file."""
        return build_tokenizer(self._get, self.path)

    def tokenizer_config(self) -> dict[str, Any]:
        """What Hugging Face's ``tokenizer_config.json`` says of the tokenizer."""
        tokens = self._get("tokenizer.ggml.tokens")
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
            index = self._reader.fields.get(f"tokenizer.ggml.{theirs}_token_id")
            if index is not None and 0 <= index.contents() < len(tokens):
                config[f"{ours}_token"] = tokens[index.contents()]
        template = self._reader.fields.get("tokenizer.chat_template")
        if template is not None:
            config["chat_template"] = template.contents()
        config["model_max_length"] = self._get("llama.context_length")
        return config

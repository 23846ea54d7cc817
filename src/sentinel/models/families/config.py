"""Reads a Hugging Face ``config.json`` field by field; what no one asked for is refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from sentinel.errors import InputError
from sentinel.models.layer_spec import Activation
from sentinel.plain import is_list, is_object

# What a field that the family does not read may hold without changing what the model computes:
# - any value in a field of `GENERIC_FIELDS` (generation, training, labels, notes of the software that wrote the file);
# - null, or an empty list, object or text, in any field: it is what an absent field is. Not a quantisation's;
# - the value of `WITHOUT_EFFECT` in its field. False is harmless only there: the absence of another switch may mean "on".
GENERIC_FIELDS = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_attn_implementation_internal",
        "_commit_hash",
        "_flash_attn_2_enabled",
        "_name_or_path",
        "_pre_quantization_dtype",
        "architectures",
        "attention_probs_dropout_prob",
        "attn_implementation",
        "auto_map",
        "bad_words_ids",
        "begin_suppress_tokens",
        "bos_token",
        "bos_token_id",
        "chunk_size_feed_forward",
        "classifier_dropout",
        "cls_token_id",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "dropout",
        "dtype",
        "early_stopping",
        "embd_dropout",
        "encoder_no_repeat_ngram_size",
        "eos_token",
        "eos_token_id",
        "exponential_decay_length_penalty",
        "finetuning_task",
        "flash_attention",
        "forced_bos_token_id",
        "forced_decoder_ids",
        "forced_eos_token_id",
        "gradient_checkpointing",
        "hidden_dropout",
        "hidden_dropout_prob",
        "id2label",
        "is_decoder",
        "is_encoder_decoder",
        "keys_to_ignore_at_inference",
        "label2id",
        "layerdrop",
        "length_penalty",
        "low_cpu_mem_usage",
        "mask_token_id",
        "max_length",
        "max_new_tokens",
        "max_sequence_length",
        "min_length",
        "min_new_tokens",
        "model_max_length",
        "model_type",
        "name_or_path",
        "neftune_noise_alpha",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_labels",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_past",
        "output_scores",
        "pad_token",
        "pad_token_id",
        "penalty_alpha",
        "predict_special_tokens",
        "prefix",
        "problem_type",
        "remove_invalid_values",
        "repetition_penalty",
        "resid_dropout",
        "return_dict",
        "return_dict_in_generate",
        "sep_token_id",
        "suppress_tokens",
        "task_specific_params",
        "temperature",
        "tf_legacy_loss",
        "tie_weights",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torch_dtype",
        "torchscript",
        "training_args",
        "transformers.js_config",
        "transformers_version",
        "trl_version",
        "typical_p",
        "unk_token",
        "unk_token_id",
        "unsloth_fixed",
        "unsloth_version",
        "use_bfloat16",
        "use_cache",
        "use_flash_attention",
        "use_flash_attention_2",
        "use_flash_attn",
        "z_loss",
    }
)
OFF = (
    "add_cross_attention",
    "alibi",
    "attention_o_bias",
    "attention_out_bias",
    "clip_qkv",
    "lm_head_bias",
    "o_bias",
    "parallel_residual",
    "qk_layernorm",
    "qk_norm",
    "rope_interleaved",
    "tie_encoder_decoder",
    "use_alibi",
    "use_mrope",
    "use_parallel_residual",
    "use_qk_norm",
    "use_sliding_window",
)
SCALES = (
    "embedding_multiplier",
    "logit_scale",
    "logits_scaling",
    "partial_rotary_factor",
    "residual_multiplier",
    "rotary_pct",
)
WITHOUT_EFFECT: dict[str, Any] = {**dict.fromkeys(OFF, False), **dict.fromkeys(SCALES, 1)}


class ConfigReader:
    """Takes fields out of a config; `done` refuses by name what was neither read nor known to be harmless."""

    def __init__(self, family: str, config: dict[str, Any]) -> None:
        self.family = family
        self._windowed = config.get("use_sliding_window", True) is not False
        self._left = {k: v for k, v in config.items() if k not in GENERIC_FIELDS}

    def refuse(self, name: str, value: Any, expected: str) -> InputError:
        return InputError(f"{self.family} config: {name} must be {expected}, not {value!r}")

    def integer(self, name: str, default: int) -> int:
        """A whole number of at least 1."""
        value = self._left.pop(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.refuse(name, value, "a whole number of at least 1")
        return value

    def optional_integer(self, name: str, default: int | None = None) -> int | None:
        """A whole number of at least 1, or None; ``default`` where the field is absent."""
        if self._left.get(name, default) is None:
            return self._left.pop(name, None)
        return self.integer(name, default or 1)

    def natural(self, name: str, default: int) -> int:
        """A whole number of at least 0."""
        if self._left.get(name, default) == 0:
            self._left.pop(name, None)
            return 0
        return self.integer(name, default)

    def default(self, name: str, value: Any) -> None:
        """What the field ``name`` holds where it is absent."""
        self._left.setdefault(name, value)

    def one_each(self, name: str, values: Sequence[Any], count: int) -> Sequence[Any]:
        """The first ``count`` of ``values`` of the field ``name``: one for every layer."""
        if len(values) < count:
            raise self.refuse(name, list(values), f"a list of {count}")
        return values[:count]

    def number(self, name: str, default: float) -> float:
        """A number that is not negative; text is none, as for Hugging Face."""
        return self.checked_number(name, self._left.pop(name, default))

    def checked_number(self, name: str, value: Any) -> float:
        """``value`` of the field ``name``, if it is a number that is not negative."""
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not good or not math.isfinite(value) or value < 0:
            raise self.refuse(name, value, "a number of at least 0")
        return float(value)

    def rename(self, **names: str) -> None:
        """Fold the names that Hugging Face takes for those of the family: ``rename(hidden_size="n_embd")``."""
        for other, name in names.items():
            value = self._left.pop(other, None)
            if value is not None and self._left.setdefault(name, value) != value:
                raise InputError(f"{self.family} config: {other} {value!r} and {name} {self._left[name]!r} disagree")

    def flag(self, name: str, default: bool, *, null: bool | None = None) -> bool:
        """True or False; ``null`` is what null means, where it may stand there."""
        value = self._left.pop(name, default)
        value = null if value is None and null is not None else value
        if not isinstance(value, bool):
            raise self.refuse(name, value, "true or false")
        return value

    def activation(self, name: str, default: str) -> Activation:
        """An activation function that the decoder has; Hugging Face's synonyms are folded."""
        value = self._left.pop(name, default)
        tanh = dict.fromkeys(("gelu_accurate", "gelu_fast", "gelu_pytorch_tanh"), "gelu_new")
        synonyms = {**tanh, "gelu_python": "gelu", "swish": "silu"}
        value = synonyms.get(str(value), value)
        if value not in ("gelu_new", "gelu", "silu", "relu"):
            raise InputError(
                f"{self.family} config: {name} {value!r} is not supported (gelu_new, gelu, silu, relu are)"
            )
        return value

    def mapping(self, name: str) -> dict[str, Any] | None:
        """An object, or None."""
        value = self._left.pop(name, None)
        if value is None or is_object(value):
            return value
        raise self.refuse(name, value, "an object")

    def only(self, name: str, supported: Any) -> None:
        """A field of which a single value is supported."""
        value = self._left.pop(name, supported)
        if value != supported:
            raise InputError(f"{self.family} config: {name} {value!r} is not supported (only {supported!r} is)")

    def layer_types(self, count: int, default: Callable[[int], bool]) -> list[bool]:
        """Which of ``count`` layers have a window; where the config does not tell, by their number."""
        types = self._left.pop("layer_types", None)
        if types is None:
            return [default(index) for index in range(count)]
        known = {"full_attention": False, "sliding_attention": True}
        good = is_list(types) and len(types) == count and all(isinstance(t, str) and t in known for t in types)
        if not good:
            raise self.refuse("layer_types", types, f"a list of {count} full_attention or sliding_attention")
        return [known[kind] for kind in types]

    def optional_number(self, name: str, default: float | None = None) -> float | None:
        """A number that is not negative, or None."""
        value = self._left.pop(name, default)
        return None if value is None else self.checked_number(name, value)

    def numbers(self, name: str) -> list[int] | None:
        """A list of whole numbers, or None."""
        value = self._left.pop(name, None)
        if value is None or (is_list(value) and all(isinstance(item, int) for item in value)):
            return value
        raise self.refuse(name, value, "a list of whole numbers")

    def ignore(self, *names: str) -> None:
        """Fields that do not change what the model computes."""
        for name in names:
            self._left.pop(name, None)

    def done(self) -> None:
        """Refuse what is left, unless it has no effect."""
        types = self._left.pop("layer_types", None)
        if types is not None and (not is_list(types) or any(kind != "full_attention" for kind in types)):
            raise self.refuse("layer_types", types, "a list of full_attention")
        self._left.pop("max_window_layers", None)  # of a window that is refused where there is one
        if not self._windowed:
            self._left.pop("sliding_window", None)
        left = {name: value for name, value in self._left.items() if not _has_no_effect(name, value)}
        if left:
            raise InputError(f"{self.family} config: field {sorted(left)[0]!r} is not supported")


def _has_no_effect(name: str, value: Any) -> bool:
    if value is None:
        return True
    if value == "" or (isinstance(value, (list, dict)) and not value):
        return name != "quantization_config"
    return name in WITHOUT_EFFECT and value == WITHOUT_EFFECT[name]

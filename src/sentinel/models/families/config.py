"""Reads a Hugging Face ``config.json`` field by field; what no one asked for is refused by name."""

from __future__ import annotations

from typing import Any, cast

from sentinel.errors import InputError
from sentinel.models.spec import Activation

# Fields that every Hugging Face config may hold and that do not change what the model computes.
GENERIC_FIELDS = frozenset(
    {
        "_attn_implementation",
        "_name_or_path",
        "architectures",
        "attn_implementation",
        "auto_map",
        "bad_words_ids",
        "begin_suppress_tokens",
        "bos_token_id",
        "chunk_size_feed_forward",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "dtype",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "eos_token_id",
        "exponential_decay_length_penalty",
        "finetuning_task",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "id2label",
        "is_decoder",
        "is_encoder_decoder",
        "keys_to_ignore_at_inference",
        "label2id",
        "length_penalty",
        "max_length",
        "min_length",
        "model_type",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "pad_token_id",
        "prefix",
        "problem_type",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict",
        "return_dict_in_generate",
        "sep_token_id",
        "suppress_tokens",
        "task_specific_params",
        "temperature",
        "tf_legacy_loss",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torch_dtype",
        "torchscript",
        "transformers.js_config",
        "transformers_version",
        "typical_p",
        "use_bfloat16",
        "use_cache",
    }
)
HARMLESS_WHEN_EMPTY = frozenset({"pruned_heads", "cross_attention_hidden_size", "tie_encoder_decoder"})


class ConfigReader:
    """Takes fields out of a config; `done` refuses by name what was neither read nor known to be harmless."""

    def __init__(self, family: str, config: dict[str, Any]) -> None:
        self.family = family
        self._left = {k: v for k, v in config.items() if k not in GENERIC_FIELDS}

    def _refuse(self, name: str, value: Any, expected: str) -> InputError:
        return InputError(f"{self.family} config: {name} must be {expected}, not {value!r}")

    def integer(self, name: str, default: int) -> int:
        """A whole number of at least 1."""
        value = self._left.pop(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self._refuse(name, value, "a whole number of at least 1")
        return value

    def optional_integer(self, name: str) -> int | None:
        """A whole number of at least 1, or None."""
        if self._left.get(name) is None:
            return self._left.pop(name, None)
        return self.integer(name, 1)

    def number(self, name: str, default: float) -> float:
        """A number that is not negative."""
        value = self._left.pop(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            raise self._refuse(name, value, "a number of at least 0")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or False."""
        value = self._left.pop(name, default)
        if not isinstance(value, bool):
            raise self._refuse(name, value, "true or false")
        return value

    def activation(self, name: str, default: Activation) -> Activation:
        """An activation function that the decoder has; Hugging Face's synonyms are folded."""
        value = self._left.pop(name, default)
        synonyms = {"gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new", "swish": "silu"}
        value = synonyms.get(value, value)
        if value not in ("gelu_new", "gelu", "silu", "relu"):
            raise InputError(
                f"{self.family} config: {name} {value!r} is not supported (gelu_new, gelu, silu, relu are)"
            )
        return cast(Activation, value)

    def mapping(self, name: str) -> dict[str, Any] | None:
        """An object, or None."""
        value = self._left.pop(name, None)
        if value is not None and not isinstance(value, dict):
            raise self._refuse(name, value, "an object")
        return value

    def only(self, name: str, supported: Any) -> None:
        """A field of which a single value is supported."""
        value = self._left.pop(name, supported)
        if value != supported:
            raise InputError(f"{self.family} config: {name} {value!r} is not supported (only {supported!r} is)")

    def ignore(self, *names: str) -> None:
        """Fields that do not change what the model computes."""
        for name in names:
            self._left.pop(name, None)

    def done(self) -> None:
        """Refuse what is left."""
        left = {k: v for k, v in self._left.items() if not (k in HARMLESS_WHEN_EMPTY and not v)}
        if left:
            raise InputError(f"{self.family} config: field {sorted(left)[0]!r} is not supported")

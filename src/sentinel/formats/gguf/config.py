"""The settings of a GGUF file as a Hugging Face config of its family."""

from __future__ import annotations

from typing import Any

from sentinel.errors import InputError
from sentinel.formats.gguf.rope import Values, rope_parameters
from sentinel.models.families.family import Family
from sentinel.models.families.gguf import GGUFFields, GGUFLayout

EMBEDDING, HEAD = "token_embd.weight", "output.weight"


def config_of(
    family: Family, layout: GGUFLayout, fields: GGUFFields, values: Values, vocab_size: int
) -> dict[str, Any]:
    """The config of the file, ids of special tokens apart; `InputError` names the field that is not supported."""
    found = _sizes(layout, fields)
    head_dim = fields.count("attention.key_length", _head_dim(fields))
    config: dict[str, Any] = {
        "model_type": family.model_type,
        "architectures": [family.architecture],
        "vocab_size": vocab_size,
        **found,
        layout.eps[1]: fields.number(layout.eps[0]),
        **{name: has_bias(fields, kinds) for name, kinds in layout.biases.items()},
        "tie_word_embeddings": HEAD not in fields.tensors,
        "dtype": "float32",
    }
    if layout.rotary is not None:
        context = fields.count("context_length")
        config["rope_parameters"] = rope_parameters(fields, values, head_dim, context, layout.rotary)
    config.update(layout.more(fields, config))
    fields.done()
    return config


def has_bias(fields: GGUFFields, kinds: tuple[str, ...]) -> bool:
    """Whether a projection of those kinds has a bias in any layer."""
    return any(name.split(".")[2:] in [[kind, "bias"] for kind in kinds] for name in fields.tensors)


def _head_dim(fields: GGUFFields) -> int:
    return fields.count("embedding_length") // fields.count("attention.head_count")


def _sizes(layout: GGUFLayout, fields: GGUFFields) -> dict[str, int]:
    """Sizes by the config's names; one that the config has no name for must be what follows from the others."""
    heads, head_dim = fields.count("attention.head_count"), _head_dim(fields)
    defaults = {"attention.head_count_kv": heads, "attention.key_length": head_dim}
    for name, default in defaults.items():
        if name not in layout.sizes and fields.count(name, default) != default:
            raise InputError(
                f"{fields.path}: {layout.architecture} models have a GGUF field {name!r} of {default} only"
            )
    fields.only("attention.value_length", fields.count("attention.key_length", head_dim))
    return {ours: fields.count(theirs, defaults.get(theirs)) for theirs, ours in layout.sizes.items()}

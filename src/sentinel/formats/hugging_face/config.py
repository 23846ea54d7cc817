"""The configuration of a sentinel model as Hugging Face's classes know it."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from sentinel.errors import InputError
from sentinel.formats.folder import MODEL_TYPE
from sentinel.models.spec import ModelSpec


class SentinelConfig(PretrainedConfig):
    """A Hugging Face config around a `ModelSpec`, which it keeps in the field ``spec``.

    The fields that Hugging Face's code reads (``vocab_size``, ``max_position_embeddings`` ...) follow from the spec.
    ``widths`` lists the stored widths of an elastic model, ``heads`` and ``neurons`` name the one that is set.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        spec: ModelSpec | dict[str, Any] | None = None,
        *,
        use_cache: bool = True,
        widths: list[dict[str, Any]] | None = None,
        heads: float = 0.0,
        neurons: float = 0.0,
        **kwargs: Any,
    ) -> None:
        """Raises `InputError` for a field that says another thing than the spec."""
        self.use_cache = use_cache
        self.widths, self.heads, self.neurons = widths, heads, neurons
        if spec is None:  # Hugging Face asks for the defaults
            super().__init__(**kwargs)
            return
        parsed = spec if isinstance(spec, ModelSpec) else ModelSpec.from_dict(spec)
        self.spec = parsed.to_dict()
        super().__init__(**{**_derived(parsed), **kwargs})
        self._require_agreement(parsed)

    def model_spec(self) -> ModelSpec:
        """The specification; `InputError` where there is none, another field contradicts it, or torch can't run it."""
        if getattr(self, "spec", None) is None:
            raise InputError("SentinelConfig has no spec; give it one, or load a sentinel checkpoint")
        if getattr(self, "precision", None) is not None:
            raise InputError(
                f"this checkpoint is quantised ({self.precision}), so that only level 3 of sentinel runs it; "
                "load the model that it was made from"
            )
        spec = ModelSpec.from_dict(self.spec)
        self._require_agreement(spec)
        return spec

    def _require_agreement(self, spec: ModelSpec) -> None:
        for name, value in _derived(spec).items():
            if getattr(self, name) != value:
                raise InputError(
                    f"{name} is {getattr(self, name)}, but {value} by the spec; change the spec (dataclasses.replace), "
                    "from which it follows"
                )

    def follow(self, spec: ModelSpec) -> None:
        """Take ``spec``, and all that follows from it."""
        self.spec = spec.to_dict()
        for name, value in _derived(spec).items():
            setattr(self, name, value)


def _derived(spec: ModelSpec) -> dict[str, Any]:
    """What Hugging Face's code reads; of layers that differ, the largest."""
    layers = spec.with_baseline_layers().layers  # Hugging Face makes a cache of as many
    windows = [layer.attention.window for layer in layers]
    largest = max((w for w in windows if w is not None), default=None)
    types = ["full_attention" if window is None else "sliding_attention" for window in windows]
    return {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.n_embd,
        "num_hidden_layers": len(layers),
        "num_attention_heads": max((layer.n_head for layer in layers), default=0),
        "num_key_value_heads": max((layer.n_kv_head for layer in layers), default=0),
        "head_dim": max((layer.head_dim for layer in layers), default=0),
        "intermediate_size": max((layer.intermediate_size for layer in layers), default=0),
        "max_position_embeddings": spec.max_seq_len,
        "tie_word_embeddings": spec.tied_head,
        **({} if largest is None else {"sliding_window": largest, "layer_types": types}),
    }

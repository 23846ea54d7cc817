"""The decoder as a Hugging Face model: Auto classes, ``generate()``, ``pipeline``, ``save_pretrained``.

Importing this module registers `SentinelConfig` and `SentinelForCausalLM` with ``AutoConfig`` and
``AutoModelForCausalLM``.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from sentinel.errors import InputError
from sentinel.files import write_folder
from sentinel.models.decoder import Decoder
from sentinel.models.families import family_of
from sentinel.models.families.weights import write_weights
from sentinel.models.folder import MODEL_TYPE, is_checkpoint
from sentinel.models.spec import ModelSpec

# transformers 5 renames ``past_key_values``, in inputs and outputs, to ``cache``.
CACHE_FIELD = "cache" if "cache" in {f.name for f in dataclasses.fields(CausalLMOutputWithPast)} else "past_key_values"


class SentinelConfig(PretrainedConfig):
    """A Hugging Face config around a `ModelSpec`, which it keeps in the field ``spec``."""

    model_type = MODEL_TYPE

    def __init__(self, spec: ModelSpec | dict[str, Any] | None = None, **kwargs: Any) -> None:
        if spec is not None:
            parsed = spec if isinstance(spec, ModelSpec) else ModelSpec.from_dict(spec)
            self.spec = parsed.to_dict()
            self.vocab_size = parsed.vocab_size
            self.hidden_size = parsed.n_embd
            self.num_hidden_layers = parsed.with_baseline_layers().n_layer  # Hugging Face makes a cache of as many
            self.max_position_embeddings = parsed.max_seq_len
            kwargs["tie_word_embeddings"] = parsed.tied_head
        super().__init__(**kwargs)

    def model_spec(self) -> ModelSpec:
        return ModelSpec.from_dict(self.spec)


class SentinelForCausalLM(PreTrainedModel, GenerationMixin):
    """`Decoder` behind Hugging Face's interface. Layers may all differ."""

    config_class = SentinelConfig
    base_model_prefix = "decoder"
    main_input_name = "input_ids"
    _supports_sdpa = True

    def __init__(self, config: SentinelConfig) -> None:
        super().__init__(config)
        self.decoder = Decoder(config.model_spec())
        self.post_init()

    @classmethod
    def from_decoder(cls, decoder: Decoder, **config: Any) -> SentinelForCausalLM:
        """Wrap an existing decoder; its weights are shared, not copied."""
        with torch.device("meta"):
            model = cls(SentinelConfig(decoder.spec, **config))
        model.decoder = decoder
        return model

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)) and module.weight.numel():
            nn.init.normal_(module.weight, std=0.02)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.decoder.embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        assert isinstance(value, nn.Embedding)
        self.decoder.embed = value

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits [B, T, V] and, with ``labels`` [B, T], the mean next-token loss (-100 is not counted)."""
        cache = past_key_values if cache is None else cache
        if use_cache and cache is None:
            cache = DynamicCache()
        logits = self.decoder(input_ids, cache, attention_mask, last_only=logits_to_keep == 1)
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        output = CausalLMOutputWithPast(loss=loss, logits=logits)
        output[CACHE_FIELD] = cache
        return output if return_dict is not False else output.to_tuple()

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, save_directory: str | Path, **kwargs: Any
    ) -> None:
        """As Hugging Face's, but the folder appears whole or not at all."""
        with write_folder(save_directory, is_checkpoint) as temporary:
            super().save_pretrained(temporary, **kwargs)


def to_hugging_face(decoder: Decoder) -> PreTrainedModel:
    """The family's own Hugging Face model with the decoder's weights, for models whose layers are all alike."""
    spec = decoder.spec
    if spec.integration is not None:
        raise InputError("Hugging Face has no model with skips or a baseline, so that this one can't be written as one")
    family = family_of(spec.family)
    config = family.config_from_spec(spec)
    state = write_weights(family.weight_rules(spec), spec, {k: v.detach() for k, v in decoder.state_dict().items()})
    hf_config = AutoConfig.for_model(**config, bos_token_id=None, eos_token_id=None)
    model_class = getattr(transformers, family.ARCHITECTURE)
    return model_class.from_pretrained(None, config=hf_config, state_dict=state).eval()


AutoConfig.register(MODEL_TYPE, SentinelConfig)
AutoModelForCausalLM.register(SentinelConfig, SentinelForCausalLM)

"""The decoder as Hugging Face models: Auto classes, ``generate()``, ``pipeline``, ``save_pretrained``.

Importing this module registers `SentinelConfig`, `SentinelModel` and `SentinelForCausalLM` with ``AutoConfig``,
``AutoModel`` and ``AutoModelForCausalLM``.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from sentinel.errors import InputError
from sentinel.formats.folder import MODEL_TYPE
from sentinel.formats.hugging_face.base import CACHE_FIELD, SentinelPreTrainedModel, one_cache
from sentinel.formats.hugging_face.config import SentinelConfig
from sentinel.formats.hugging_face.masks import Given
from sentinel.models.decoder import Decoder
from sentinel.models.families import family_of
from sentinel.models.families.weights import write_weights
from sentinel.models.features import (
    ATTENTION_VARIANTS,
    BLOCK_VARIANTS,
    END_VARIANTS,
    PLAIN,
    ROPE_SCALINGS,
    ROTARY_VARIANTS,
    require_supported,
)
from sentinel.models.parts.linear import Projection, bias_of

__all__ = ["SentinelConfig", "SentinelForCausalLM", "SentinelModel", "to_hugging_face"]

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")  # a class's own may be beyond the vocabulary
# What one or other of Hugging Face's classes has; what a family lacks is refused by its own file.
SUPPORTS = PLAIN | ROPE_SCALINGS | ROTARY_VARIANTS | ATTENTION_VARIANTS | BLOCK_VARIANTS | END_VARIANTS


class SentinelModel(SentinelPreTrainedModel):
    """The decoder without its LM head: states and not logits."""

    _keys_to_ignore_on_load_unexpected = [r"^decoder\.lm_head\."]  # noqa: RUF012

    def _finish(self) -> None:
        self.decoder.lm_head = None

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Given = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        *,
        past_key_values: Cache | None = None,
        output_hidden_states: bool | int | list[int] | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,  # of transformers 4; the cache knows it
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """The normed states ``last_hidden_state`` [B, T, C]; arguments as those of `SentinelForCausalLM.forward`."""
        output = self._pass(
            input_ids,
            attention_mask,
            position_ids,
            one_cache(cache, past_key_values),
            inputs_embeds,
            use_cache,
            output_hidden_states,
            output_attentions,
        )
        output.last_hidden_state = self.decoder.final_norm(output.last_hidden_state)
        return self._returned(output, return_dict)


class SentinelForCausalLM(SentinelPreTrainedModel, GenerationMixin):
    """The decoder with its LM head."""

    accepts_loss_kwargs = True  # Trainer then leaves the division of accumulated gradients to the loss

    @property
    def base_model(self) -> SentinelModel:
        """The same decoder as a `SentinelModel`, whose weights are these."""
        return self.get_decoder()

    def get_decoder(self, *_: Any, **__: Any) -> SentinelModel:
        found = self.__dict__.get("_base")
        if found is None or found.decoder is not self.decoder:
            found = SentinelModel._around(self.decoder, copy.deepcopy(self.config))  # making a model may change it
            found.config = self.config
            self.__dict__["_base"] = found  # no submodule: its tensors would be saved twice
        return found.train(self.training)

    def get_output_embeddings(self) -> nn.Module | None:
        """The LM head; None where it is the embedding."""
        return self.decoder.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        if self.decoder.lm_head is None:
            raise InputError("the LM head of this model is its embedding; set that")
        rows, columns = new_embeddings.weight.shape
        head = Projection(columns, rows, bias=bias_of(new_embeddings) is not None, device="meta")
        head.weight, head.bias = new_embeddings.weight, new_embeddings.bias
        head._is_hf_initialized = True  # pyright: ignore[reportArgumentType]
        self.decoder.lm_head = head

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Given = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        *,
        past_key_values: Cache | None = None,
        output_hidden_states: bool | int | list[int] | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
        shift_labels: Tensor | None = None,
        cache_position: Tensor | None = None,  # of transformers 4; the cache knows it
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits [B, T, V] and, with ``labels`` [B, T], the mean next-token loss (-100 is not counted).

        Arguments mean what they mean for Hugging Face's models. ``num_items_in_batch``, the targets of all accumulated
        batches, divides the loss in place of this batch's. ``shift_labels`` [B, T] are targets that stand at the places of
        their predictions already, and count in place of ``labels``. ``logits_to_keep`` is a number of last positions, or
        their indices. Without ``position_ids``, positions count from the first token that ``attention_mask`` lets through.
        ``hidden_states`` [B, T, C] are what the first layer reads and what every layer leaves, the last one normed.

        ``output_hidden_states`` may name some of them by number. ``attentions`` [B, H, T, S] are the weights of every
        layer, for which attention is computed step by step.

        Raises `InputError` for what can't be given.
        """
        states = self._pass(
            input_ids,
            attention_mask,
            position_ids,
            one_cache(cache, past_key_values),
            inputs_embeds,
            use_cache,
            output_hidden_states,
            output_attentions,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        x = states.last_hidden_state
        assert x is not None
        logits = self.decoder.logits(x[:, keep])
        output = CausalLMOutputWithPast(
            loss=self._loss(logits, labels, shift_labels, num_items_in_batch),
            logits=logits,  # pyright: ignore[reportArgumentType]
            hidden_states=states.hidden_states,
            attentions=states.attentions,
            **{CACHE_FIELD: states.get(CACHE_FIELD)},  # pyright: ignore
        )
        return self._returned(output, return_dict)

    def _loss(
        self, logits: Tensor, labels: Tensor | None, shift_labels: Tensor | None, num_items: int | Tensor | None
    ) -> Any:
        """The loss of ``logits`` [B, T, V] where there are targets."""
        targets = labels if shift_labels is None else shift_labels
        if targets is None:
            return None
        if logits.shape[1] != targets.shape[1]:
            raise InputError("labels need the logits of all positions; leave out logits_to_keep")
        return cast(Any, self).loss_function(
            logits=logits,
            labels=labels,
            vocab_size=self.config.vocab_size,
            num_items_in_batch=num_items,
            shift_labels=shift_labels,
        )


def to_hugging_face(decoder: Decoder) -> PreTrainedModel:
    """The family's own Hugging Face model with the decoder's weights.

    Raises `InputError` for what these do not have, such as unequal layers.
    """
    spec = decoder.spec
    require_supported(spec, SUPPORTS, "Hugging Face's own class")
    family = family_of(spec.family)
    config = family.config_from_spec(spec)
    state = write_weights(family.rules(spec), spec, {k: v.detach() for k, v in decoder.state_dict().items()})
    hf_config = cast(Any, AutoConfig).for_model(**{**config, **dict.fromkeys(TOKEN_IDS)})
    model_class = getattr(transformers, family.architecture)
    return model_class.from_pretrained(None, config=hf_config, state_dict=state, dtype=decoder.dtype).eval()


def _register(auto: Any, key: object, ours: type) -> None:
    auto.register(key, ours)  # whose types are not known


_register(AutoConfig, MODEL_TYPE, SentinelConfig)
_register(AutoModel, SentinelConfig, SentinelModel)
_register(AutoModelForCausalLM, SentinelConfig, SentinelForCausalLM)

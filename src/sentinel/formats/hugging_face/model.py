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
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.hub import cached_file

from sentinel.errors import InputError
from sentinel.formats.checkpoint import listed_widths, read_widths
from sentinel.formats.folder import MODEL_TYPE
from sentinel.formats.hugging_face.cache import SharedCache
from sentinel.formats.hugging_face.config import SentinelConfig
from sentinel.formats.hugging_face.saving import save
from sentinel.models.decoder import Decoder
from sentinel.models.families import family_of
from sentinel.models.families.weights import write_weights
from sentinel.models.parts.linear import Projection
from sentinel.models.record import Record

# transformers 5 renames ``past_key_values``, in inputs and outputs, to ``cache``.
CACHE_FIELD = "cache" if "cache" in {f.name for f in dataclasses.fields(CausalLMOutputWithPast)} else "past_key_values"
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class SentinelForCausalLM(PreTrainedModel, GenerationMixin):
    """`Decoder` behind Hugging Face's interface. Layers may all differ.

    A checkpoint may store widths: ``from_pretrained(folder, heads=0.5)`` sets one, as does `set_width` later.
    """

    config_class = SentinelConfig
    base_model_prefix = "decoder"
    main_input_name = "input_ids"
    accepts_loss_kwargs = True  # Trainer then leaves the division of accumulated gradients to the loss
    _supports_sdpa = True

    def __init__(self, config: SentinelConfig) -> None:
        super().__init__(config)
        self.decoder = Decoder(config.model_spec())
        if getattr(config, "record", None) is not None:
            self.decoder.record = Record.from_dict(config.record)
        self.post_init()

    @classmethod
    def from_decoder(cls, decoder: Decoder, record: Record | None = None, **config: Any) -> SentinelForCausalLM:
        """Wrap an existing decoder; its weights are shared, not copied.

        The ``record`` of how it was made, by default the one that it carries, is saved with it.
        """
        made = decoder.record if record is None else record
        with torch.device("meta"):
            model = cls(SentinelConfig(decoder.spec, record=made.to_dict(), **config))
        model.decoder = decoder
        return model

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, pretrained_model_name_or_path: str | Path | None, *model_args: Any, **kwargs: Any
    ) -> Any:
        """As Hugging Face's. ``heads`` and ``neurons`` choose a stored width of an elastic checkpoint.

        Raises `InputError` for a width that is not stored, and for a quantised checkpoint.
        """
        options = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        given = kwargs.get("config")
        if not isinstance(given, SentinelConfig):
            given = SentinelConfig.from_pretrained(given or str(pretrained_model_name_or_path), **options)
        given.model_spec()
        found = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = found[0] if isinstance(found, tuple) else found
        config = model.config
        listed = listed_widths(vars(config))
        if listed and pretrained_model_name_or_path is not None:
            files = [cached_file(pretrained_model_name_or_path, entry["file"], **options) for entry in listed]
            model._store_widths(Path(str(files[0])).parent)
        if config.heads or config.neurons:
            model.set_width(config.heads, config.neurons)
        return found

    def _store_widths(self, folder: Path) -> None:
        self.decoder.store_widths(
            dataclasses.replace(
                stored, projections={n: t.to(self.device, self.dtype) for n, t in stored.projections.items()}
            )
            for stored in read_widths(folder, vars(self.config))
        )

    def set_width(self, heads: float, neurons: float = 0.0) -> None:
        """Use a stored width: the share of heads, and of neurons, that is left out.

        Raises `InputError` for a width that is not stored.
        """
        self.decoder.set_width(heads, neurons)
        self.config.heads, self.config.neurons = heads, neurons

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)) and module.weight.numel():
            nn.init.normal_(module.weight, std=0.02)

    def get_input_embeddings(self) -> nn.Module:
        return self.decoder.embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        if not isinstance(value, nn.Embedding):
            raise InputError(f"the embedding must be a torch.nn.Embedding, not {type(value).__name__}")
        self.decoder.embed = value

    def get_output_embeddings(self) -> nn.Module | None:
        """The LM head; None where it is the embedding."""
        return self.decoder.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        if self.decoder.lm_head is None:
            raise InputError("the LM head of this model is its embedding; set that")
        rows, columns = new_embeddings.weight.shape
        head = Projection(columns, rows, bias=False, device="meta")
        head.weight = new_embeddings.weight
        self.decoder.lm_head = head

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As Hugging Face's; the specification follows. `InputError` for a model with a baseline, which has its own."""
        if self.decoder.baseline is not None:
            raise InputError("a model with a baseline can't be resized, since both must have the same vocabulary")
        resized = super().resize_token_embeddings(*args, **kwargs)
        self.decoder.spec = dataclasses.replace(self.decoder.spec, vocab_size=self.decoder.embed.weight.shape[0])
        self.config.follow(self.decoder.spec)
        return resized

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        *,
        past_key_values: Cache | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
        cache_position: Tensor | None = None,  # of transformers 4; the cache knows it
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits [B, T, V] and, with ``labels`` [B, T], the mean next-token loss (-100 is not counted).

        Arguments mean what they mean for Hugging Face's models. ``num_items_in_batch``, the targets of all accumulated
        batches, divides the loss in place of this batch's. ``logits_to_keep`` is a number of last positions, or their
        indices. Without ``position_ids``, positions count from the first token that ``attention_mask`` lets through.
        ``hidden_states`` [B, T, C] are what the first layer reads and what every layer leaves, the last one normed.

        Raises `InputError` for what can't be given: attention weights, say.
        """
        if self.config.output_attentions if output_attentions is None else output_attentions:
            raise InputError("output_attentions is not supported: attention runs fused, without its weights")
        tokens = self._tokens(input_ids, inputs_embeds)
        cache = self._cache(cache, past_key_values, use_cache)
        shared = None if cache is None else SharedCache(cache, tokens.shape[1])
        wants_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        states: list[Tensor] | None = [] if wants_states else None
        x = self.decoder.hidden_states(tokens, shared, attention_mask, position_ids, states=states)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.decoder.logits(x[:, keep])
        loss = None
        if labels is not None:
            if logits.shape[1] != labels.shape[1]:
                raise InputError("labels need the logits of all positions; leave out logits_to_keep")
            loss = self.loss_function(
                logits=logits,
                labels=labels,
                vocab_size=self.config.vocab_size,
                num_items_in_batch=num_items_in_batch,
            )
        fields: dict[str, Any] = {"loss": loss, "logits": logits, CACHE_FIELD: cache}
        if states is not None:
            fields["hidden_states"] = (*states[:-1], self.decoder.final_norm(states[-1]))
        output = CausalLMOutputWithPast(**fields)
        wants_dict = self.config.return_dict if return_dict is None else return_dict
        return output if wants_dict else output.to_tuple()

    def _tokens(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """What the decoder reads: token ids [B, T] or embeddings [B, T, C]."""
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("give either input_ids or inputs_embeds")
        if input_ids is not None:
            return input_ids
        if self.decoder.baseline is not None:
            raise InputError("inputs_embeds is not supported by a model with a baseline, which embeds tokens by itself")
        assert inputs_embeds is not None
        return inputs_embeds

    def _cache(self, cache: Cache | None, past_key_values: Cache | None, use_cache: bool | None) -> Cache | None:
        """The cache that was given under either name, or a new one where one is wanted."""
        if cache is not None and past_key_values is not None:
            raise InputError("cache and past_key_values are two names of one argument; give one")
        given = past_key_values if cache is None else cache
        if given is not None and not isinstance(given, Cache):
            raise InputError(f"past_key_values must be a transformers Cache, not {type(given).__name__}")
        # An exported graph can't return a cache, unless it is asked to.
        wanted = self.config.use_cache and not torch.compiler.is_compiling() if use_cache is None else use_cache
        return DynamicCache() if wanted and given is None else given

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        **options: Any,
    ) -> None:
        """As Hugging Face's, with its options: other files in the folder stay, each file appears whole or not at all.

        Weights of an earlier save that would be read in place of these go. An elastic model is saved with its widths.
        Raises `InputError` for what can't be honoured or written.
        """
        if is_main_process:
            save(self, Path(save_directory), state_dict, options, super().save_pretrained)


def to_hugging_face(decoder: Decoder) -> PreTrainedModel:
    """The family's own Hugging Face model with the decoder's weights, for models whose layers are all alike."""
    spec = decoder.spec
    if spec.integration is not None:
        raise InputError("Hugging Face has no model with skips or a baseline, so that this one can't be written as one")
    if not spec.is_uniform:
        raise InputError("Hugging Face's classes have layers that are all alike, which those of this model are not")
    family = family_of(spec.family)
    config = family.config_from_spec(spec)
    state = write_weights(family.rules(spec), spec, {k: v.detach() for k, v in decoder.state_dict().items()})
    hf_config = AutoConfig.for_model(**config, bos_token_id=None, eos_token_id=None)
    model_class = getattr(transformers, family.architecture)
    return model_class.from_pretrained(None, config=hf_config, state_dict=state).eval()


AutoConfig.register(MODEL_TYPE, SentinelConfig)
AutoModelForCausalLM.register(SentinelConfig, SentinelForCausalLM)

"""What the Hugging Face models around a `Decoder` have in common: loading, widths, embeddings, one pass, saving."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import ModelOutput
from transformers.utils.hub import cached_file  # pyright: ignore[reportUnknownVariableType]
from typing_extensions import Self

from sentinel.errors import InputError
from sentinel.formats.checkpoint import listed_widths, open_widths
from sentinel.formats.hugging_face.cache import SharedCache
from sentinel.formats.hugging_face.config import SentinelConfig
from sentinel.formats.hugging_face.masks import CacheMasks, Given, require_positions
from sentinel.formats.hugging_face.saving import save
from sentinel.models.decoder import Decoder
from sentinel.models.integration import Fusion
from sentinel.models.parts.attention import Attention, Trace
from sentinel.models.parts.block import Block
from sentinel.models.parts.norms import RMSNorm
from sentinel.models.record import Record

# transformers 5 renames ``past_key_values``, in inputs and outputs, to ``cache``.
CACHE_FIELD = "cache" if "cache" in {f.name for f in dataclasses.fields(BaseModelOutputWithPast)} else "past_key_values"
Output = TypeVar("Output", bound=ModelOutput)
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class SentinelLayer(GradientCheckpointingLayer, Block):
    """A layer whose activations Hugging Face may drop, to compute them again for the gradients."""


class SentinelPreTrainedModel(PreTrainedModel):
    """`Decoder` behind Hugging Face's interface. Layers may all differ.

    A checkpoint may store widths: ``from_pretrained(folder, heads=0.5)`` sets one, as does `set_width` later.
    """

    config_class = SentinelConfig
    base_model_prefix = "decoder"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["SentinelLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["cache", "past_key_values"]  # noqa: RUF012

    config: SentinelConfig

    def __init__(self, config: SentinelConfig) -> None:
        super().__init__(config)  # pyright: ignore[reportUnknownMemberType]
        self.decoder = _prepared(Decoder(config.model_spec()))
        if getattr(config, "record", None) is not None:
            self.decoder.record = Record.from_dict(config.record)
        self._finish()
        self.post_init()

    def _finish(self) -> None:
        """What a kind of model changes in its decoder."""

    @classmethod
    def from_decoder(cls, decoder: Decoder, record: Record | None = None, **config: Any) -> Self:
        """Wrap an existing decoder; its weights are shared, not copied.

        The ``record`` of how it was made, by default the one that it carries, is saved with it.
        """
        made = decoder.record if record is None else record
        return cls._around(decoder, SentinelConfig(decoder.spec, record=made.to_dict(), **config))

    @classmethod
    def _around(cls, decoder: Decoder, config: SentinelConfig) -> Self:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # layers without heads
            model = cls(config)
        model.decoder = _prepared(decoder)
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
            given = cast(Any, SentinelConfig).from_pretrained(given or str(pretrained_model_name_or_path), **options)
        given.model_spec()
        # transformers has no types for this method.
        found: Any = cast(Any, super()).from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = _first(found)
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
            for stored in (width.read() for width in open_widths(folder, vars(self.config)))
        )

    def set_width(self, heads: float, neurons: float = 0.0) -> None:
        """Use a stored width: the share of heads, and of neurons, that is left out.

        Raises `InputError` for a width that is not stored.
        """
        self.decoder.set_width(heads, neurons)
        self.config.heads, self.config.neurons = heads, neurons

    def _init_weights(self, module: nn.Module) -> None:
        """Random weights; norms and gates that change nothing, and fusions that are the identity."""
        if isinstance(module, (nn.Linear, nn.Embedding)) and module.weight.numel():
            nn.init.normal_(module.weight, std=getattr(self.config, "initializer_range", 0.02))
        elif isinstance(module, (RMSNorm, nn.LayerNorm)):
            nn.init.ones_(module.weight)
        elif isinstance(module, (Attention, Fusion)):
            nn.init.ones_(module.gate)
            if isinstance(module, Fusion):
                nn.init.zeros_(module.up.weight)
        bias = getattr(module, "bias", None)
        if isinstance(bias, Tensor) and bias.numel():
            nn.init.zeros_(bias)

    def get_input_embeddings(self) -> nn.Module:
        return self.decoder.embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        if not isinstance(value, nn.Embedding):
            raise InputError(f"the embedding must be a torch.nn.Embedding, not {type(value).__name__}")
        self.decoder.embed = value

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As Hugging Face's; the specification follows. `InputError` for a model with a baseline, which has its own."""
        if self.decoder.baseline is not None:
            raise InputError("a model with a baseline can't be resized, since both must have the same vocabulary")
        resized = super().resize_token_embeddings(*args, **kwargs)
        self.decoder.spec = dataclasses.replace(self.decoder.spec, vocab_size=self.decoder.embed.weight.shape[0])
        self.config.follow(self.decoder.spec)
        return resized

    def _pass(
        self,
        input_ids: Tensor | None,
        attention_mask: Given,
        position_ids: Tensor | None,
        cache: Cache | None,
        inputs_embeds: Tensor | None,
        use_cache: bool | None,
        output_hidden_states: bool | int | list[int] | None,
        output_attentions: bool | None,
    ) -> BaseModelOutputWithPast:
        """States [B, T, C] after the last layer, before the final norm as ``last_hidden_state``, and what else was asked.

        ``hidden_states`` are None where ``output_hidden_states`` names others; the last one is normed.
        """
        tokens = self._tokens(input_ids, inputs_embeds)
        cache = self._cache(cache, use_cache)
        batch, new = tokens.shape[:2]
        past = _length(cache)
        context = self.decoder.spec.max_seq_len
        if isinstance(past, int) and past + new > context:
            raise InputError(f"{past + new} tokens are more than the model's context of {context}")
        if position_ids is not None:
            require_positions(position_ids, batch, new, None if self.decoder.positions is None else context)
        masks = CacheMasks(tokens, cache, past, attention_mask, position_ids)
        positions = masks.positions() if position_ids is None else position_ids
        trace = self._trace(output_hidden_states, output_attentions)
        shared = None if cache is None else SharedCache(cache, past)
        x = self.decoder.through_layers(
            tokens, positions, self.decoder.rotary(positions, masks.total), shared, masks, trace
        )
        return BaseModelOutputWithPast(
            last_hidden_state=x,  # pyright: ignore[reportArgumentType]
            hidden_states=None if trace.states is None else self._selected(trace.states, output_hidden_states),
            attentions=None if trace.weights is None else tuple(trace.weights),  # pyright: ignore[reportArgumentType]
            **{CACHE_FIELD: cache},  # pyright: ignore[reportArgumentType]
        )

    def _trace(self, output_hidden_states: bool | int | list[int] | None, output_attentions: bool | None) -> Trace:
        """What a pass must keep by these options, or by the config where they are None."""
        wants = self.config.output_attentions if output_attentions is None else output_attentions
        # Fused attention has no weights.
        eager = wants or self.config._attn_implementation == "eager"  # pyright: ignore[reportPrivateUsage]
        states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return Trace([] if states is not False else None, [] if wants else None, eager)

    def _selected(self, states: list[Tensor], wanted: bool | int | list[int] | None) -> tuple[Any, ...]:
        """The states, the last one normed; None in the place of those that ``wanted`` does not name by its numbers."""
        found = (*states[:-1], self.decoder.final_norm(states[-1]))
        wanted = self.config.output_hidden_states if wanted is None else wanted
        if wanted is None or isinstance(wanted, bool):
            return found
        kept = {i % len(found) for i in ([wanted] if isinstance(wanted, int) else wanted)}
        return tuple(state if i in kept else None for i, state in enumerate(found))

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

    def _cache(self, cache: object, use_cache: bool | None) -> Cache | None:
        """The cache that was given, or a new one where one is wanted."""
        if cache is not None and not isinstance(cache, Cache):
            raise InputError(f"past_key_values must be a transformers Cache, not {type(cache).__name__}")
        checkpointed = any(getattr(block, "gradient_checkpointing", False) for block in self.decoder.layers)
        if self.training and checkpointed and torch.is_grad_enabled():
            return None  # layers run twice, and would be cached twice
        # An exported graph can't return a cache, unless it is asked to.
        wanted = self.config.use_cache and not torch.compiler.is_compiling() if use_cache is None else use_cache
        return DynamicCache(config=self.config) if wanted and cache is None else cache

    def _returned(self, output: Output, return_dict: bool | None) -> Output | tuple[Any, ...]:
        """The output itself, or the tuple of what is in it, by that option or by the config."""
        wants_dict = self.config.return_dict if return_dict is None else return_dict
        return output if wants_dict else cast(Any, output).to_tuple()

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
            save(self, Path(save_directory), state_dict, options, cast(Any, super()).save_pretrained)


def _prepared(decoder: Decoder) -> Decoder:
    """The same decoder, whose layers Hugging Face may checkpoint."""
    for block in decoder.layers:
        if type(block) is Block:
            block.__class__ = SentinelLayer
    return decoder


def _first(found: Any) -> SentinelPreTrainedModel:
    """The model of what Hugging Face returns: it, or a tuple that begins with it."""
    return cast("tuple[SentinelPreTrainedModel, ...]", found)[0] if isinstance(found, tuple) else found


def _length(cache: Cache | None) -> int | Tensor:
    """Cached positions; a number, unless a pass is compiled."""
    past = 0 if cache is None else cache.get_seq_length()
    return past if torch.compiler.is_compiling() else int(past)


def one_cache(cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
    """The cache that was given under either of its names; `InputError` for both."""
    if cache is not None and past_key_values is not None:
        raise InputError("cache and past_key_values are two names of one argument; give one")
    if past_key_values is not None and CACHE_FIELD == "cache" and not torch.compiler.is_compiling():
        warnings.warn("`past_key_values` is deprecated by transformers; use `cache`", FutureWarning, stacklevel=3)
    return past_key_values if cache is None else cache

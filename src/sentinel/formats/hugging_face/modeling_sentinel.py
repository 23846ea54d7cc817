# pyright: standard
"""A decoder whose layers may all differ, in one file that needs torch and transformers alone.

`sentinel export` copies this file beside the weights, so that transformers loads the folder without the package that wrote
it: ``AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)``. ``config.json`` says in ``per_layer_config``
what a layer has other than the rest, and which halves it skips; a skipped half adds its bias, if it has one.

It is written for reading and is not made from the package's sources: those also train, trace, switch widths and borrow from
other layers, and bring five times as much code. What keeps the two the same is a test of every feature of every family.
Gates and the scales of what layers add are in the weights, and rotary frequencies are numbers in ``config.json``, so that
no scaling of them has to be known here.

Shape letters: B batch, T new tokens, S cached and new positions, C hidden_size, H query heads, G key/value heads,
D head_dim.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

# transformers 5 renames ``past_key_values``, in inputs and outputs, to ``cache``.
CACHE_FIELD = "cache" if "cache" in {f.name for f in dataclasses.fields(BaseModelOutputWithPast)} else "past_key_values"
# Until transformers 5.2, a cache was asked for its sizes with the new positions, and not with their number.
ASKS_WITH_POSITIONS = "cache_position" in inspect.signature(Cache.get_mask_sizes).parameters

NORMS = ("attn_norm", "mlp_norm", "attn_post_norm", "mlp_post_norm", "q_norm", "k_norm", "final_norm")
# Fields of the config by their defaults. The first may differ between layers.
OF_LAYERS: dict[str, Any] = {
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "intermediate_size": 1,
    "hidden_act": "silu",
    "gated_mlp": True,
    "sliding_window": None,  # of the layers that ``layer_types`` calls sliding_attention: a token sees so many, itself too
    "rotary": None,  # number of the entry of ``rotary_tables``; None: no rotary positions
    "qk_norm": None,  # RMS norm of queries and keys: of every "head", or over the "whole"
    "attention_scale": None,  # of the scores, by default 1 / sqrt(head_dim)
    "attention_soft_cap": None,
    "qkv_bias": False,
    "attention_out_bias": False,
    "mlp_up_bias": False,
    "mlp_down_bias": False,
}
OF_MODEL: dict[str, Any] = {
    "vocab_size": 1,
    "hidden_size": 1,
    "num_hidden_layers": 1,
    "max_position_embeddings": 2048,
    "norm": "rmsnorm",
    "norm_eps": 1e-5,
    "learned_positions": False,
    "pre_norm": True,
    "post_norm": False,
    "parallel": False,  # attention and MLP both read the stream as it enters the layer
    "shared_norm": False,  # and one norm of it
    "embedding_scale": 1.0,
    "logit_soft_cap": None,
    "lm_head_bias": False,
    "rotary_tables": (),  # each with frequencies, and those of texts beyond original_max_position_embeddings if they differ
}


class SentinelDecoderConfig(PretrainedConfig):
    """Sizes and features, and ``per_layer_config``: what single layers have in place of that, by their number."""

    model_type = "sentinel_decoder"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012

    def __init__(self, use_cache: bool = True, **fields: Any) -> None:
        self.use_cache = use_cache
        super().__init__(**{**OF_LAYERS, **OF_MODEL, **fields})

    def of_layer(self, index: int) -> Any:
        """The config as layer ``index`` has it."""
        listed: Any = getattr(self, "per_layer_config", None) or {}
        if not isinstance(listed, dict):  # transformers 5 knows it
            return listed[index]
        found = copy.copy(self)
        for name, value in {int(number): own for number, own in listed.items()}.get(index, {}).items():
            setattr(found, name, value)
        return found


class Norm(nn.Module):
    """RMSNorm (Zhang and Sennrich 2019) or LayerNorm (Ba et al. 2016), computed in fp32."""

    def __init__(self, size: int, config: Any, kind: str | None = None) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if (kind or config.norm) == "layernorm" else None

    def forward(self, x: Tensor) -> Tensor:
        shape, weight = self.weight.shape, self.weight.float()
        if self.bias is None:
            return functional.rms_norm(x.float(), shape, weight, self.eps).to(x.dtype)
        return functional.layer_norm(x.float(), shape, weight, self.bias.float(), self.eps).to(x.dtype)


class Bias(nn.Module):
    """What is left of the last projection of a half without heads or neurons."""

    def __init__(self, size: int, bias: bool) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None

    def of(self, x: Tensor) -> Tensor:
        """The bias at every position of ``x`` [B, T, C]."""
        return torch.zeros_like(x) if self.bias is None else self.bias.expand_as(x)


class Attention(nn.Module):
    """Causal attention with grouped heads; the rows of a group's queries, key and value lie together in ``qkv_proj``."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.heads, self.groups, self.dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.skipped = "attention" in (getattr(config, "skip", None) or ())
        self.rotary, self.soft_cap, self.qk_norm = config.rotary, config.attention_soft_cap, config.qk_norm
        self.scale = self.dim**-0.5 if config.attention_scale is None else config.attention_scale
        if self.skipped:
            self.out_proj = Bias(config.hidden_size, config.attention_out_bias)
            return
        rows = (self.heads + 2 * self.groups) * self.dim
        self.qkv_proj = nn.Linear(config.hidden_size, rows, bias=config.qkv_bias)
        if self.qk_norm is not None:
            each = (1, 1) if self.qk_norm == "head" else (self.heads, self.groups)
            self.q_norm, self.k_norm = (Norm(count * self.dim, config, "rmsnorm") for count in each)
        self.out_proj = nn.Linear(self.heads * self.dim, config.hidden_size, bias=config.attention_out_bias)

    def forward(self, x: Tensor, turns: list[tuple[Tensor, Tensor]], cache: Any, index: int, mask: Any) -> Tensor:
        batch, new = x.shape[:2]
        if isinstance(self.out_proj, Bias):
            if cache is not None:  # a cache knows its length by its tensors, and zeros would be free places
                cache.update(*(x.new_ones(batch, 1, new, 1),) * 2, index)
            return self.out_proj.of(x)
        per_group = self.heads // self.groups
        qkv = self.qkv_proj(x).view(batch, new, self.groups, per_group + 2, self.dim)
        query, key = qkv[:, :, :, :per_group].flatten(2, 3), qkv[:, :, :, per_group]
        value = qkv[:, :, :, per_group + 1].transpose(1, 2)
        if self.qk_norm is not None:
            query, key = self._normed(self.q_norm, query), self._normed(self.k_norm, key)
        query, key = query.transpose(1, 2), key.transpose(1, 2)
        if self.rotary is not None:
            query, key = (rotate(heads, *turns[self.rotary]) for heads in (query, key))
        if cache is not None:
            key, value = cache.update(key, value, index)
        key, value = (heads.repeat_interleave(per_group, 1) for heads in (key, value))
        return self.out_proj(self._attend(query, key, value, mask).transpose(1, 2).flatten(2))

    def _normed(self, norm: nn.Module, x: Tensor) -> Tensor:
        return norm(x) if self.qk_norm == "head" else norm(x.flatten(2)).view(x.shape)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        if self.soft_cap is None:
            return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.scale)
        scores = self.soft_cap * torch.tanh(query @ key.transpose(2, 3) * self.scale / self.soft_cap)
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        return scores.float().softmax(-1).to(value.dtype) @ value


class MLP(nn.Module):
    """Two projections with an activation between, optionally gated."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, neurons = config.hidden_size, config.intermediate_size
        self.activation, self.gated = config.hidden_act, config.gated_mlp
        if "mlp" in (getattr(config, "skip", None) or ()):
            self.down_proj = Bias(width, config.mlp_down_bias)
            return
        if self.gated:
            self.gate_proj = nn.Linear(width, neurons, bias=config.mlp_up_bias)
        self.up_proj = nn.Linear(width, neurons, bias=config.mlp_up_bias)
        self.down_proj = nn.Linear(neurons, width, bias=config.mlp_down_bias)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.down_proj, Bias):
            return self.down_proj.of(x)
        up = self.up_proj(x)
        return self.down_proj(self._activate(self.gate_proj(x)) * up if self.gated else self._activate(up))

    def _activate(self, x: Tensor) -> Tensor:
        if self.activation == "gelu_new":
            return functional.gelu(x, approximate="tanh")
        return {"gelu": functional.gelu, "silu": functional.silu, "relu": functional.relu}[self.activation](x)


class Layer(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)), with the norms and joints that the config says."""

    attn_norm: nn.Module
    mlp_norm: nn.Module
    attn_post_norm: nn.Module
    mlp_post_norm: nn.Module

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.parallel, self.shared_norm = config.parallel, config.shared_norm
        self.attn, self.mlp = Attention(config), MLP(config)
        names = {
            "attn_norm": config.pre_norm,
            "mlp_norm": config.pre_norm and not config.shared_norm,
            "attn_post_norm": config.post_norm,
            "mlp_post_norm": config.post_norm,
        }
        for name, there in names.items():
            setattr(self, name, Norm(config.hidden_size, config) if there else nn.Identity())

    def forward(self, x: Tensor, turns: list[tuple[Tensor, Tensor]], cache: Any, index: int, mask: Any) -> Tensor:
        normed = self.attn_norm(x)
        after = x + self.attn_post_norm(self.attn(normed, turns, cache, index, mask))
        read = normed if self.shared_norm else self.mlp_norm(x if self.parallel else after)
        return after + self.mlp_post_norm(self.mlp(read))


class SentinelDecoderForCausalLM(PreTrainedModel, GenerationMixin):
    """The decoder with its LM head, which is the embedding where they are tied."""

    config_class = SentinelDecoderConfig
    main_input_name = "input_ids"
    _supports_sdpa = True
    _no_split_modules = ["Layer"]  # noqa: RUF012
    _skip_keys_device_placement = ["cache", "past_key_values"]  # noqa: RUF012

    def __init__(self, config: SentinelDecoderConfig) -> None:
        super().__init__(config)
        layers = [config.of_layer(index) for index in range(config.num_hidden_layers)]
        types = getattr(config, "layer_types", None) or ["full_attention"] * len(layers)
        self.windows = [
            layer.sliding_window if kind == "sliding_attention" else None
            for layer, kind in zip(layers, types, strict=True)
        ]
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.learned_positions:
            self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(Layer(layer) for layer in layers)
        self.final_norm = Norm(config.hidden_size, config)
        self.lm_head = None
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)
        norms = {name.rpartition(".")[2] for name, module in self.named_modules() if isinstance(module, Norm)}
        self._keep_in_fp32_modules_strict = sorted(norms)  # transformers 4 refuses names that are not there
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def get_output_embeddings(self) -> nn.Module | None:
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        *,
        past_key_values: Cache | None = None,
        num_items_in_batch: Any = None,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T, V] and, with ``labels`` [B, T], the mean next-token loss; arguments as of any causal model.

        ``attention_mask`` [B, S] is 0 where there is padding; of four dimensions it is the mask itself, or one of them for
        each of the config's ``layer_types``.
        """
        cache = past_key_values if cache is None else cache
        if cache is None and (self.config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache(config=self.config)
        x: Tensor = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        new = x.shape[1]
        past = 0 if cache is None else int(cache.get_seq_length())
        places = torch.arange(past, past + new, device=x.device)
        keep = attention_mask.bool() if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2 else None
        given = attention_mask if keep is None else None
        if position_ids is None:
            position_ids = places[None] if keep is None else (keep.long().cumsum(-1) - 1).clamp(min=0)[:, -new:]
        x = x * self.config.embedding_scale
        if self.config.learned_positions:
            x = x + self.positions(position_ids)
        turns = [self._turns(table, position_ids, past + new, x.dtype) for table in self.config.rotary_tables]
        masks: dict[Any, Tensor] = {}
        for index, layer in enumerate(self.layers):
            key = (self.windows[index], *_sizes(cache, places, index))
            if key not in masks:
                masks[key] = _given(given, *key) if given is not None else _mask(keep, places, *key)
            x = layer(x, turns, cache, index, masks[key])
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self._logits(self.final_norm(x[:, kept]))
        loss = None
        if labels is not None:
            counted = {} if num_items_in_batch is None else {"num_items_in_batch": num_items_in_batch}
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **counted)
        output: dict[str, Any] = {"loss": loss, "logits": logits, CACHE_FIELD: cache}
        return CausalLMOutputWithPast(**output)

    def _logits(self, x: Tensor) -> Tensor:
        logits = functional.linear(x, self.embed.weight) if self.lm_head is None else self.lm_head(x)
        cap = self.config.logit_soft_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @staticmethod
    def _turns(table: dict[str, Any], positions: Tensor, total: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines [B, 1, T, rotated / 2] of texts of ``total`` tokens."""
        longer = "long_frequencies" in table and total > table["original_max_position_embeddings"]
        frequencies = torch.tensor(table["long_frequencies" if longer else "frequencies"], device=positions.device)
        angles = positions[:, None, :, None].float() * frequencies
        factor = table.get("attention_factor", 1.0)
        return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + N/2) of the first N numbers of ``x`` [B, heads, T, D] (Su et al. 2021)."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), -1)


def _sizes(cache: Cache | None, places: Tensor, index: int) -> tuple[int, int]:
    """How many positions the cache will return for the layer, and which is the first."""
    if cache is None:
        return len(places), 0
    length, first = cache.get_mask_sizes(places if ASKS_WITH_POSITIONS else len(places), index)  # type: ignore[arg-type]
    return int(length), int(first)


def _mask(keep: Tensor | None, places: Tensor, window: int | None, length: int, first: int) -> Tensor:
    """Which of ``length`` positions from ``first`` on the tokens at ``places`` [T] may look at: [B or 1, 1, T, length]."""
    back = places[:, None] - (first + torch.arange(length, device=places.device))
    seen = (back >= 0) if window is None else (back >= 0) & (back < window)
    if keep is None:
        return seen[None, None]
    known = functional.pad(keep, (0, max(0, first + length - keep.shape[1])))[:, first : first + length]
    # Padding looks at itself: its state is never read, but a row without anything to look at gives NaN.
    return ((seen & known[:, None]) | (back == 0))[:, None]


def _given(given: Any, window: int | None, length: int, first: int) -> Tensor:
    """The part of a mask of four dimensions, or of that for layers with such a window, that a cache's positions have."""
    mask = given if isinstance(given, Tensor) else given["full_attention" if window is None else "sliding_attention"]
    return mask if mask.shape[-1] == length else mask[..., first : first + length]

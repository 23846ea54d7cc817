"""Sentinel models in EleutherAI's lm-evaluation-harness, under the name "sentinel" (extra ``eval``).

    sentinel-lm-eval --model sentinel --model_args pretrained=elastic,heads=0.5 --tasks lambada_openai

``pretrained`` is any MODEL that sentinel takes in fp32, ``heads`` and ``neurons`` a stored pruning level. Importing this
module registers the model.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]
from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

from sentinel.errors import InputError
from sentinel.models.elastic import require_levels
from sentinel.models.hf import SentinelForCausalLM
from sentinel.models.sources import load
from sentinel.models.tokenizer import TextTokenizer

# What HFLM uses of a model that is loaded already; it would pass over everything else without a word.
OPTIONS = (
    "batch_size",
    "max_batch_size",
    "max_length",
    "truncation",
    "logits_cache",
    "add_bos_token",
    "prefix_token_id",
    "softmax_dtype",
    "mixed_precision_dtype",
    "think_end_token",
)


@register_model("sentinel")
class SentinelLM(HFLM):
    """The harness's Hugging Face model around a sentinel decoder."""

    def __init__(
        self,
        pretrained: str = "",
        heads: float = 0.0,
        neurons: float = 0.0,
        device: str | None = None,
        **options: Any,
    ) -> None:
        unknown = sorted(name for name in options if name not in OPTIONS)
        if unknown:
            own = [name for name in inspect.signature(SentinelLM).parameters if name != "options"]
            raise InputError(f"model argument {unknown[0]!r} is not known; there are {', '.join((*own, *OPTIONS))}")
        loaded = load(str(pretrained), device=_device(device))
        loaded.require_real_weights("an evaluation")
        if heads or neurons:
            require_levels(loaded.decoder).set_level(_ratio("heads", heads), _ratio("neurons", neurons))
        tokenizer = loaded.require_tokenizer()
        if not tokenizer.eos_ids:
            raise InputError(f"{pretrained} names no end-of-sequence token, which the harness needs")
        model = SentinelForCausalLM.from_decoder(loaded.decoder, eos_token_id=tokenizer.eos_ids[0])
        prepared = {"pretrained": model, "tokenizer": _hugging_face(tokenizer), "backend": "causal"}
        super().__init__(**prepared, **options)


def _device(asked: str | None) -> str:
    """The device asked for; the harness asks for "cuda:0" when nobody has, and then the CPU will do."""
    return "cpu" if asked is None or (asked.startswith("cuda") and not torch.cuda.is_available()) else asked


def _ratio(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InputError(f"model argument {name} must be a ratio, not {value!r}") from None


def _hugging_face(tokenizer: TextTokenizer) -> Any:
    from transformers import PreTrainedTokenizerFast

    inner = tokenizer.fast
    fast = PreTrainedTokenizerFast(tokenizer_object=getattr(inner, "_tokenizer", inner))
    fast.eos_token = fast.convert_ids_to_tokens(tokenizer.eos_ids[0])
    return fast

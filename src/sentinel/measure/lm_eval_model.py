"""Sentinel models in EleutherAI's lm-evaluation-harness, under the name "sentinel" (extra ``eval``).

    sentinel-lm-eval --model sentinel --model_args pretrained=elastic,heads=0.5 --tasks lambada_openai

``pretrained`` is any MODEL that sentinel takes, ``heads`` and ``neurons`` a stored width, ``level`` an optimisation
level (0 to 3) and ``precision`` int8 or int4 at level 3. Texts become tokens, and prompts chats, as for ``--model hf``.
Importing this module registers the model. The project's own tasks are sentinel_last_word, sentinel_agreement and
sentinel_definition.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]
from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]
from transformers import GenerationConfig

from sentinel.errors import InputError
from sentinel.formats.hugging_face.model import SentinelForCausalLM
from sentinel.infer.opening import OpenedEngine, open_engine
from sentinel.measure.lm_eval_engine import EngineModel
from sentinel.models.tokenizer import TextTokenizer

# What HFLM uses of a model that is loaded already; it would pass over everything else without a word.
OPTIONS = (
    "batch_size",
    "max_batch_size",
    "max_length",
    "truncation",
    "logits_cache",
    "tokenizer",
    "add_bos_token",
    "prefix_token_id",
    "softmax_dtype",
    "mixed_precision_dtype",
    "think_end_token",
    "enable_thinking",
    "chat_template_args",
)


@register_model("sentinel")
class SentinelLM(HFLM):
    """The harness's Hugging Face model around a sentinel engine."""

    def __init__(
        self,
        pretrained: str = "",
        level: int | None = None,
        precision: str | None = None,
        heads: float = 0.0,
        neurons: float = 0.0,
        device: str | None = None,
        **options: Any,
    ) -> None:
        unknown = sorted(name for name in options if name not in OPTIONS)
        if unknown:
            own = [name for name in inspect.signature(SentinelLM).parameters if name != "options"]
            raise InputError(f"model argument {unknown[0]!r} is not known; there are {', '.join((*own, *OPTIONS))}")
        opened = open_engine(
            str(pretrained),
            level=None if level is None else _number("level", level, int, "a whole number"),
            precision=precision,
            heads=_number("heads", heads, float, "a ratio"),
            neurons=_number("neurons", neurons, float, "a ratio"),
            device=_device(device),
        )
        opened.require_real_weights("an evaluation")
        tokenizer = opened.require_tokenizer()
        if not tokenizer.eos_ids:
            raise InputError(f"{pretrained} names no end-of-sequence token, which the harness needs")
        options.setdefault("tokenizer", _hugging_face(tokenizer))
        model = _model(opened, tokenizer, str(options.get("batch_size", 1)))
        prepared = {"pretrained": model, "backend": "causal", **options}
        super().__init__(**prepared)


def _device(asked: str | None) -> str:
    """The device asked for; the harness asks for "cuda:0" when nobody has, and then the CPU will do."""
    return "cpu" if asked is None or (asked.startswith("cuda") and not torch.cuda.is_available()) else asked


def _number(name: str, value: Any, kind: Callable[[Any], Any], called: str) -> Any:
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise InputError(f"model argument {name} must be {called}, not {value!r}") from None


def _hugging_face(tokenizer: TextTokenizer) -> Any:
    """What HFLM makes its tokenizer of: the model's folder where there is one, as for ``--model hf``."""
    return tokenizer.to_hugging_face() if tokenizer.folder is None else str(tokenizer.folder)


def _model(opened: OpenedEngine, tokenizer: TextTokenizer, batch_size: str) -> SentinelForCausalLM | EngineModel:
    """The engine's decoder where it runs one, else the engine itself (levels 2 and 3 on the CPU)."""
    engine, folder = opened.engine, tokenizer.folder
    stored = folder is not None and (folder / "generation_config.json").exists()
    generation = GenerationConfig.from_pretrained(str(folder)) if stored else GenerationConfig()
    if engine.decoder is None:
        if batch_size.startswith("auto"):
            raise InputError(f"batch_size=auto is not supported at level {engine.level}; give a number")
        return EngineModel(engine, tokenizer.eos_ids, generation)
    if generation.eos_token_id is None:
        generation.eos_token_id = list(tokenizer.eos_ids)
    model = SentinelForCausalLM.from_decoder(engine.decoder, opened.record)
    model.generation_config = generation
    return model

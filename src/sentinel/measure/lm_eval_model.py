"""Sentinel models in EleutherAI's lm-evaluation-harness, under the name "sentinel" (extra ``eval``).

    sentinel-lm-eval --model sentinel --model_args pretrained=smollm2-135m,heads=0.5 --tasks lambada_openai

``sentinel-lm-eval`` is the harness's own command line with the model registered; ``pretrained`` is any MODEL that
sentinel takes, ``heads`` and ``neurons`` a stored pruning level.
"""

from __future__ import annotations

import sys
from typing import Any

from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]
from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]
from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

from sentinel.errors import InputError
from sentinel.models.elastic import require_levels
from sentinel.models.hf import SentinelForCausalLM
from sentinel.models.sources import load


@register_model("sentinel")
class SentinelLM(HFLM):
    """The harness's Hugging Face model around a sentinel decoder."""

    def __init__(self, pretrained: str, heads: float = 0.0, neurons: float = 0.0, **options: Any) -> None:
        from transformers import PreTrainedTokenizerFast

        loaded = load(pretrained)
        loaded.require_real_weights("an evaluation")
        if heads or neurons:
            require_levels(loaded.decoder).set_level(float(heads), float(neurons))
        tokenizer = loaded.require_tokenizer()
        if not tokenizer.eos_ids:
            raise InputError(f"{pretrained} names no end-of-sequence token, which the harness needs")
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer.fast)
        fast.eos_token = fast.convert_ids_to_tokens(tokenizer.eos_ids[0])
        model = SentinelForCausalLM.from_decoder(loaded.decoder, eos_token_id=tokenizer.eos_ids[0])
        super().__init__(pretrained=model, tokenizer=fast, backend="causal", **options)


def main() -> None:
    """The harness's command line, with "sentinel" among its models."""
    try:
        cli_evaluate()
    except InputError as error:
        print(f"sentinel: {error}", file=sys.stderr)
        sys.exit(2)

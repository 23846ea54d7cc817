"""An engine as the harness's Hugging Face model asks for a model: optimisation levels 2 and 3 in lm-eval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteriaList
from transformers.modeling_outputs import CausalLMOutput

from sentinel.formats.hugging_face.config import SentinelConfig
from sentinel.infer.engine import Engine
from sentinel.infer.generate import generate_tokens
from sentinel.infer.sampling import SamplingSettings


class EngineModel:
    """``engine`` with the calls of a Hugging Face model that the harness makes.

    ``generation`` holds the model's own defaults, of which ``repetition_penalty`` is honoured.
    """

    def __init__(self, engine: Engine, eos_ids: Sequence[int], generation: GenerationConfig) -> None:
        self._engine = engine
        self._eos_ids = tuple(eos_ids)
        self._repetition_penalty = generation.repetition_penalty or 1.0
        self.config = SentinelConfig(engine.spec)
        self.device = torch.device("cpu")
        self.dtype = engine.precision

    def num_parameters(self) -> int:
        """Parameters of the model, as Hugging Face counts them."""
        return self._engine.spec.parameter_count()

    def __call__(self, tokens: Tensor) -> CausalLMOutput:
        """Logits [B, T, V] for ``tokens`` [B, T], each row a text from its beginning."""
        rows = [torch.tensor(self._engine.score(row.tolist()), device="cpu") for row in tokens]
        return CausalLMOutput(logits=cast(torch.FloatTensor, torch.stack(rows)))

    def generate(
        self,
        *,
        input_ids: Tensor,
        attention_mask: Tensor,
        max_length: int,
        stopping_criteria: StoppingCriteriaList,
        pad_token_id: int,
        use_cache: bool = True,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int = 50,
        top_p: float = 1.0,
        repetition_penalty: float | None = None,
    ) -> Tensor:
        """``input_ids`` [B, T], padded on the left, with their continuations [B, at most ``max_length``].

        The defaults are those of Hugging Face's ``generate``; ``use_cache`` has no effect on the result.
        """
        settings = SamplingSettings(
            temperature=(1.0 if temperature is None else temperature) if do_sample else 0.0,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty or self._repetition_penalty,
        )
        prompts = [row[keep.bool()].tolist() for row, keep in zip(input_ids, attention_mask, strict=True)]
        room, no_scores = max_length - input_ids.shape[1], torch.empty(0)
        for step in generate_tokens(self._engine, prompts, room, settings, self._eos_ids):
            new = torch.tensor([[pad_token_id if token is None else token] for token in step], device="cpu")
            input_ids = torch.cat((input_ids, new), 1)
            if cast(Any, stopping_criteria)(input_ids, no_scores).all():
                break
        return input_ids

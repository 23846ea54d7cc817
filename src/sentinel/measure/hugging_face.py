"""Hugging Face ``generate()`` as the reference of decode speed: eager attention, KV cache, greedy, in the weights' type."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.utils import logging as transformers_logging

from sentinel.formats.hugging_face.model import to_hugging_face
from sentinel.infer.engine import step_bytes
from sentinel.infer.generate import Timings
from sentinel.models.decoder import Decoder

ENGINE_NAME = "hf-generate"


class _Stamps(StoppingCriteria):
    """Never stops; notes the time after every token."""

    def __init__(self, start: float, timings: Timings) -> None:
        self._start, self._timings = start, timings

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        self._timings.stamps.append(time.perf_counter() - self._start)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class HuggingFaceReference:
    """The family's own Hugging Face model with the weights of ``decoder``."""

    name = ENGINE_NAME

    def __init__(self, decoder: Decoder) -> None:
        self._spec, self._itemsize = decoder.spec, decoder.dtype.itemsize
        transformers_logging.disable_progress_bar()
        model: Any = to_hugging_face(decoder)
        self.model = model.to(decoder.device)
        self.model.set_attn_implementation("eager")

    def weight_bytes_per_token(self) -> int:
        """Bytes of weights read to decode one token at batch 1."""
        return self._spec.weight_bytes_per_token(self._itemsize)

    def step_bytes(self, n_sequence: int, context: float) -> int:
        """Bytes that a step reads at the least, with keys and values in the type of the weights; as `Engine.step_bytes`."""
        return step_bytes(self.weight_bytes_per_token(), self._spec, self._itemsize, n_sequence, context)

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int, timings: Timings) -> list[list[int]]:
        """Exactly ``new_tokens`` greedy tokens for each of the equally long ``prompts``; stamps go to ``timings``."""
        ids = torch.tensor([list(prompt) for prompt in prompts], device=self.model.device)
        stamps = _Stamps(time.perf_counter(), timings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            output = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=StoppingCriteriaList([stamps]),
            )
        return output[:, ids.shape[1] :].tolist()

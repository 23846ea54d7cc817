"""Prefill: the first token after a prompt, by every level and by Hugging Face, and the arithmetic that each does for it."""

from __future__ import annotations

from dataclasses import replace

import torch

from sentinel.measure.results import Result
from sentinel.measure.suites.generation import Generated, check_fits, generate_in_turn, level_subjects
from sentinel.measure.suites.request import Request
from sentinel.models.spec import ModelSpec


def run(request: Request) -> list[Result]:
    """Rows for Hugging Face and each level, per length of prompt."""
    lengths = request.settings.prompt_tokens
    requests = [replace(request, settings=replace(request.settings, prompt_tokens=(n,), new_tokens=1)) for n in lengths]
    for one in requests:
        check_fits(one)
    subjects = [request.engines.hugging_face(), *level_subjects(request)]
    threads = request.engines.threads or torch.get_num_threads()
    return [
        _with_arithmetic(found, one.settings.prompt, threads)
        for one in requests
        for found in generate_in_turn(one, "prefill", subjects, batch=1)
    ]


def _with_arithmetic(found: Generated, length: int, threads: int) -> Result:
    row = found.row
    assert row.ttft_ms is not None
    return replace(row, gops_per_thread=prefill_operations(found.subject.spec, length) / row.ttft_ms / 1e6 / threads)


def prefill_operations(spec: ModelSpec, length: int) -> int:
    """Operations (2 per multiply-add) for the logits of the last of ``length`` tokens; the LM head is for it alone."""
    head = 2 * spec.vocab_size * spec.n_embd
    return length * (spec.flops_per_token(length // 2) - head) + head

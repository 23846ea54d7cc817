"""Generation of real text with tokens that a draft proposes, beside level 2 alone and Hugging Face, in turn.

The prompts are of text, since what is proposed is right or wrong by what the text says: random tokens would tell nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

from sentinel.adapt.text.corpora import load_texts, sample_windows
from sentinel.infer.draft import Draft
from sentinel.infer.engine import Engine
from sentinel.infer.generate import Timings, generate_tokens
from sentinel.infer.lookup import PromptLookup
from sentinel.infer.speculation import Proposer
from sentinel.measure.method import Run, generate_timed, timed_result, timing_sample
from sentinel.measure.results import Result, Sample
from sentinel.measure.suites.engines import Subject
from sentinel.measure.suites.generation import check_fits
from sentinel.measure.suites.request import Request

PROMPTS = 4  # of a round, one after the other
LOOKUP = "lookup"


def run(request: Request) -> list[Result]:
    """A row for Hugging Face, one for level 2 alone, and one for level 2 with each draft and with lookup."""
    settings, loaded = request.settings, request.loaded
    request.require_cpu("drafts are run")
    loaded.require_real_weights("the share of tokens that are proposed rightly")
    check_fits(request)
    texts, size = load_texts(settings.text, "test"), settings.prompt
    prompts = sample_windows(texts, loaded.require_tokenizer(), PROMPTS * size, size).tokens.tolist()
    subjects: dict[str, Subject] = {}
    for subject in (request.engines.hugging_face(), request.engines.at(2)):
        subjects[subject.name] = subject
    for draft in settings.drafts:
        subject = request.engines.at(2) if draft == LOOKUP else request.engines.drafted(2, draft)
        subjects[f"{request.engines.at(2).name}, {LOOKUP}" if draft == LOOKUP else subject.name] = subject
    tokens: dict[str, list[list[int]]] = {}
    proposers: dict[str, list[Proposer]] = {name: [] for name in subjects}

    def once(name: str, subject: Subject) -> Sample:
        tokens[name], samples = [], []
        for prompt in prompts:
            proposer = _proposer(name, subject)
            found, sample = _generate(subject, prompt, settings.new_tokens, proposer)
            tokens[name].append(found)
            samples.append(sample)
            if proposer is not None:
                proposers[name].append(proposer)
        return {key: sum(sample[key] for sample in samples) / len(samples) for key in samples[0]}

    runs: dict[str, Run] = {name: functools.partial(once, name, subject) for name, subject in subjects.items()}
    reference = next(iter(subjects))
    described = functools.partial(request.row, "draft", batch=1, speedup_over=reference)
    sizes = {"prompt_tokens": settings.prompt, "new_tokens": settings.new_tokens}
    label = ", ".join(text.label for text in texts)
    rows = {name: replace(described(s, **sizes), engine=name, text=label) for name, s in subjects.items()}
    samples = request.in_turn(runs, rows, "Suite draft")
    return [
        replace(
            timed_result(rows[name], samples[reference], samples[name], passes=request.number),
            same_tokens_as_reference=tokens[name] == tokens[reference],
            acceptance=_acceptance(proposers[name]),
        )
        for name in subjects
    ]


def _proposer(name: str, subject: Subject) -> Proposer | None:
    if name.endswith(LOOKUP):
        return PromptLookup()
    draft = subject.engine.draft if isinstance(subject.engine, Engine) else None
    return None if draft is None else Draft(draft)


def _generate(
    subject: Subject, prompt: Sequence[int], count: int, proposer: Proposer | None
) -> tuple[list[int], Sample]:
    if proposer is None:
        (found,), sample = generate_timed(subject.engine, [prompt], count)
        return found, sample
    timings = Timings()
    steps = generate_tokens(subject.own_engine, [prompt], count, timings=timings, proposer=proposer)
    return [token for (token,) in steps if token is not None], timing_sample(timings)


def _acceptance(proposers: Sequence[Proposer]) -> float | None:
    proposed = sum(proposer.proposed for proposer in proposers)
    return sum(proposer.accepted for proposer in proposers) / proposed if proposed else None

"""Generation in three layers: token steps, a stream of text with statistics, a string."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sentinel.errors import InputError
from sentinel.infer.draft import Draft
from sentinel.infer.engine import Ability, Engine
from sentinel.infer.grammar import Constraint, Form, Grammars
from sentinel.infer.sampling import Sampler, SamplingSettings
from sentinel.infer.speculation import Proposer, speculative_steps
from sentinel.infer.text_stream import TextStream, check_stop
from sentinel.models.tokenizer import TextTokenizer


@dataclass
class Timings:
    """Seconds from the start of prefill to each token; ``ended`` by a token that ends the text."""

    stamps: list[float] = field(default_factory=list)
    ended: bool = False

    @property
    def ended_at_once(self) -> bool:
        """True when the first token was the end."""
        return self.ended and len(self.stamps) == 1

    @property
    def ttft_ms(self) -> float | None:
        """Time to first token, in milliseconds."""
        return self.stamps[0] * 1e3 if self.stamps else None

    @property
    def tpot_ms(self) -> float | None:
        """Time per output token after the first, in milliseconds; None for fewer than two tokens."""
        if len(self.stamps) < 2:
            return None
        return (self.stamps[-1] - self.stamps[0]) / (len(self.stamps) - 1) * 1e3

    @property
    def tokens_per_s(self) -> float | None:
        """New tokens over the whole time, prefill included."""
        return len(self.stamps) / self.stamps[-1] if self.stamps else None


def generate_tokens(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    settings: SamplingSettings | None = None,
    eos_ids: Sequence[int] = (),
    timings: Timings | None = None,
    proposer: Proposer | None = None,
    constraint: Constraint | None = None,
) -> Iterator[list[int | None]]:
    """Yield one step at a time: the next token of each sequence, None for one that has ended.

    A sequence ends with a token of ``eos_ids``, which is yielded. ``timings`` gets a stamp per step. ``proposer`` proposes
    tokens of a single prompt, by default the engine's draft where it has one. ``constraint`` says which tokens may
    come. Raises `InputError` for prompts that the engine can't take.
    """
    sampler = Sampler(settings or SamplingSettings(), len(prompts), constraint)
    start = time.perf_counter()
    if proposer is None and engine.draft is not None and len(prompts) == 1:
        proposer = Draft(engine.draft)
    steps = _plain_steps if proposer is None else functools.partial(_with_proposals, proposer)
    ended = [False] * len(prompts)
    for tokens in steps(engine, sampler, [list(prompt) for prompt in prompts], max_new_tokens):
        if timings is not None:
            timings.stamps.append(time.perf_counter() - start)
        yield [None if done else token for token, done in zip(tokens, ended, strict=True)]
        ended = [done or token in eos_ids for token, done in zip(tokens, ended, strict=True)]
        if all(ended):
            return


def _plain_steps(engine: Engine, sampler: Sampler, history: list[list[int]], count: int) -> Iterator[list[int]]:
    """The tokens of ``count`` steps, whether or not a sequence has ended."""
    sequences, logits = engine.open_all(history, count)
    try:
        for step in range(count):
            tokens = sampler(logits, history)
            yield tokens
            if engine.chooses(sampler.settings):
                yield from engine.choose_on(sequences, tokens, sampler, count - 1)
                return
            for row, token in zip(history, tokens, strict=True):
                row.append(token)
            if step + 1 < count:
                logits = engine.step(sequences, tokens)
    finally:
        engine.close(*sequences)


def _with_proposals(
    proposer: Proposer, engine: Engine, sampler: Sampler, history: list[list[int]], count: int
) -> Iterator[list[int]]:
    """`_plain_steps` of one sequence, with proposals that are verified."""
    if len(history) != 1:
        raise InputError(f"a {proposer.name} takes one prompt at a time, not {len(history)}")
    engine.require(Ability.VERIFY, f"leave out the {proposer.name}")
    (sequence,), logits = engine.open_all(history, count)
    try:
        first = sampler(logits, history)
        yield first
        for token in speculative_steps(engine, sequence, sampler, [*history[0], *first], count - 1, proposer):
            yield [token]
    finally:
        engine.close(sequence)
        proposer.close()


def stream_text(
    engine: Engine,
    tokenizer: TextTokenizer,
    prompt: str | Sequence[int],
    max_new_tokens: int,
    settings: SamplingSettings | None = None,
    stop: Sequence[str] = (),
    timings: Timings | None = None,
    proposer: Proposer | None = None,
    form: Form | None = None,
) -> Iterator[str]:
    """Yield pieces of the continuation of ``prompt`` (text, or token ids as of a chat) as soon as they are certain.

    Generation ends before the first of the ``stop`` strings, at an end-of-sequence token, or after ``max_new_tokens``.
    It keeps to ``form`` where one is given; `InputError` for one that can't be kept to.
    """
    check_stop(stop)
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
    if not ids:
        raise InputError("the prompt is empty; give some text")
    text = TextStream(tokenizer, ids, stop)
    constraint = None if form is None else Grammars(tokenizer, engine.spec.vocab_size).begin(form)
    steps = generate_tokens(engine, [ids], max_new_tokens, settings, tokenizer.eos_ids, timings, proposer, constraint)
    for (token,) in steps:
        assert token is not None
        if token in tokenizer.eos_ids:
            if timings is not None:
                timings.ended = True
            break
        piece = text.push(token)
        if piece:
            yield piece
        if text.stopped:
            return
    yield text.end()


def generate_text(
    engine: Engine,
    tokenizer: TextTokenizer,
    prompt: str | Sequence[int],
    max_new_tokens: int,
    settings: SamplingSettings | None = None,
    stop: Sequence[str] = (),
) -> str:
    """The continuation of ``prompt`` as one string; see `stream_text`."""
    return "".join(stream_text(engine, tokenizer, prompt, max_new_tokens, settings, stop))

"""The quality of an opened engine as one result: perplexity, agreement with a teacher, variety of what it writes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sentinel.adapt.recovery.likelihood import finite
from sentinel.adapt.text.corpora import Text, refuse_seen_text
from sentinel.adapt.text.kinds import Seen, seen_together
from sentinel.errors import InputError
from sentinel.formats.sources import LoadedModel
from sentinel.infer.opening import OpenedEngine
from sentinel.measure.perplexity import evaluate
from sentinel.measure.results import Result
from sentinel.measure.text_metrics import sample_variety


def evaluate_engine(
    opened: OpenedEngine,
    texts: Sequence[Text],
    *,
    context: int = 512,
    stride: int | None = None,
    max_tokens: int | None = None,
    teacher: LoadedModel | None = None,
    width: tuple[float, float] = (0.0, 0.0),
) -> Result:
    """Judge ``opened`` on ``texts``, and by what a ``teacher`` predicts.

    ``width`` are the ratios of heads and neurons that the engine leaves out, for the result. Raises `InputError` for random
    weights, a teacher of another vocabulary, and text that one of them was calibrated or trained on.
    """
    opened.require_real_weights("its quality")
    refuse_seen_text(opened.record, texts)
    engine, tokenizer = opened.engine, opened.require_tokenizer()
    if teacher is not None:
        if teacher.spec.vocab_size != engine.spec.vocab_size:
            raise InputError(
                f"the teacher {teacher.name} has {teacher.spec.vocab_size} tokens, {opened.name} has "
                f"{engine.spec.vocab_size}; a teacher needs the same vocabulary"
            )
        refuse_seen_text(teacher.record, texts)
    found = evaluate(
        engine,
        tokenizer,
        texts,
        context=context,
        stride=stride,
        max_tokens=max_tokens,
        teacher=None if teacher is None else teacher.decoder,
    )
    over = found.over_teacher
    return Result(
        suite="evaluate",
        model=opened.name,
        weights=opened.weights,
        engine=engine.name,
        level=engine.level,
        precision=engine.precision,
        heads_pruned=width[0],
        neurons_pruned=width[1],
        parameters=engine.spec.parameter_count(),
        text=found.text,
        seen_kind=seen_together(map(Seen.of(opened.record).kind_of, texts)),
        context=found.context,
        stride=found.stride,
        tokens=found.tokens,
        nll=found.nll,
        perplexity=finite(found.perplexity),
        perplexity_stderr=found.perplexity_stderr,
        bits_per_byte=found.bits_per_byte,
        perplexity_ratio=None if over is None else finite(over[0]),
        perplexity_ratio_stderr=None if over is None else over[1],
        kl=found.kl,
        top1_agreement=found.top1_agreement,
        **vars(sample_variety(engine, tokenizer, texts)),
    )


def geometric_mean(values: Sequence[float | None]) -> float | None:
    """The geometric mean of perplexities, or of ratios of them; None where one of them is not known."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return math.exp(sum(map(math.log, known)) / len(known))

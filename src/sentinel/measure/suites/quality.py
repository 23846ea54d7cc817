"""The quality suite: perplexity and speed of every criterion at every pruning ratio, with and without compensation.

Level 3 is judged too: not pruned by every precision, and by the first of them at every ratio of the first criterion,
compensated; that one is the precision whose speed the other suites have at every ratio. Without any criterion only what
is not pruned is judged, and nothing is timed.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from sentinel.adapt.pruning import criteria
from sentinel.adapt.pruning.compact import expand_kv
from sentinel.adapt.pruning.gram_matrices import input_grams
from sentinel.adapt.pruning.plan import RemovalOrder
from sentinel.adapt.pruning.prune import Pruner, PruningSettings
from sentinel.adapt.text.corpora import Text, Windows, load_texts, refuse_shared_documents
from sentinel.adapt.text.kinds import Seen
from sentinel.infer.calibration_text import WINDOW, calibration_windows
from sentinel.infer.engine import Engine
from sentinel.infer.native import NativeEngine, Precision
from sentinel.infer.opening import make_engine
from sentinel.infer.pack import pack
from sentinel.measure.judge import Judge
from sentinel.measure.method import Run, generate_timed, interleave, random_prompts, timed_result
from sentinel.measure.results import Result, Sample
from sentinel.measure.suites.engines import Subject
from sentinel.measure.suites.request import Request, SuiteSettings
from sentinel.models.decoder import Decoder
from sentinel.progress import say, working

REFERENCE = "level 1, not pruned"


PROMPT_TOKENS = 64


def run(request: Request) -> list[Result]:
    """Rows of the suite, with the texts that the settings name."""
    settings, loaded = request.settings, request.loaded
    loaded.require_real_weights("a perplexity")
    texts = load_texts(settings.text, "test")
    windows = calibration_windows(loaded, settings.calibration, settings.calibration_tokens)
    return judge_criteria(request, windows, texts)


def judge_criteria(request: Request, windows: Windows, texts: Sequence[Text]) -> list[Result]:
    """A row per criterion, ratio and way; perplexities are ratios to the dense model's, the geometric mean over those of
    ``texts`` whose kind the calibration has not seen, or over all where it has seen all.

    Raises `InputError` for random weights, and when a text shares a document with the calibration windows.
    """
    settings, loaded = replace(request.settings, precision=request.precisions), request.loaded
    loaded.require_real_weights("a perplexity")
    request.check_context(PROMPT_TOKENS + settings.new_tokens)
    refuse_shared_documents(windows.fingerprints, texts)
    dense = expand_kv(loaded.decoder) if settings.expand_kv else loaded.decoder
    context = min(WINDOW, loaded.spec.max_seq_len)
    tokenizer, tokens = loaded.require_tokenizer(), settings.eval_tokens
    judge = Judge(loaded.decoder, tokenizer, texts, loaded.record, tokens_per_text=tokens, context=context)
    seen = Seen.of(loaded.record).also(settings.calibration, windows.fingerprints)
    base = replace(
        request.row("quality", Subject(make_engine(loaded.decoder, 1), loaded.spec, 1)),
        engine=REFERENCE,
        batch=1,
        prompt_tokens=PROMPT_TOKENS,
        new_tokens=settings.new_tokens,
        speedup_over=REFERENCE,
        text=", ".join(text.label for text in texts),
        context=context,
    )
    if not settings.criteria:
        whole = replace(base, speedup_over=None, **judge(loaded.decoder))
        return [whole, *_quantised(base, judge, seen, windows, loaded.decoder, settings.precision)]
    rows: list[Result] = []
    pruners = Pruner(dense, PruningSettings(), windows)
    for criterion in criteria.asked_for(settings.criteria):
        say(f"quality: criterion {criterion}")
        pruner = pruners.with_settings(PruningSettings(criterion))
        order = pruner.order(max(settings.heads), 0.0)
        rows += _criterion_rows(base, judge, seen, pruner, order, settings, loaded.decoder, first=not rows)
    return rows


def _criterion_rows(
    base: Result,
    judge: Judge,
    seen: Seen,
    pruner: Pruner,
    order: RemovalOrder,
    settings: SuiteSettings,
    whole: Decoder,
    *,
    first: bool,
) -> list[Result]:
    """Rows of one criterion, told against ``whole``, the model as loaded; of the first one also its own and level 3's."""
    plans = [order.plan(ratio) for ratio in settings.heads]
    windows, compensated = pruner.windows, pruner.apply(plans)
    plain = pruner.with_compensation(False).apply(plans)
    samples = _speeds({0.0: whole, **dict(zip(settings.heads, plain, strict=True))}, settings)
    ranks = [[int(rank) for rank in layer] for layer in order.group_ranks]
    rows: list[Result] = []
    if first:
        rows.append(_timed(replace(base, **judge(whole)), samples, 0.0, whole))
        rows += _quantised(base, judge, seen, windows, whole, settings.precision)
    judged = functools.partial(replace, base, criterion=order.criterion, head_ranks=ranks)
    for kind, models in ((False, plain), (True, compensated)):
        for ratio, model in zip(settings.heads, models, strict=True):
            name = f"{order.criterion}{', compensated' if kind else ''}"
            row = judged(engine=name, compensated=kind, heads_pruned=ratio, **judge(model, seen))
            rows.append(_timed(row, samples, ratio, model))
            if kind and first:
                rows += _quantised(row, judge, seen, windows, model, settings.precision[:1])
    return rows


def _quantised(
    row: Result, judge: Judge, seen: Seen, windows: Windows | None, model: Decoder, precisions: Sequence[str]
) -> list[Result]:
    """Perplexity of ``model`` at level 3; its speed is in other suites. int4 is calibrated as `sentinel quantize` does."""
    found = []
    for precision in precisions:
        with working(f"Quantising to {precision}"):
            grams = None
            if precision == "int4" and windows is not None:
                grams = input_grams(model, windows.tokens)
            engine = NativeEngine(pack(model, cast(Precision, precision), grams))
        found.append(
            replace(
                row,
                engine=f"level 3 {precision}{f', {row.engine}' if row.criterion else ''}",
                level=3,
                precision=precision,
                parameters=model.spec.parameter_count(),
                weight_bytes_per_token=engine.weight_bytes_per_token(),
                speedup_over=None,
                **judge(engine, seen if grams is not None or row.criterion else None),
            )
        )
        engine.release()
    return found


def _timed(row: Result, samples: dict[float, list[Sample]], ratio: float, model: Decoder) -> Result:
    row = replace(
        row,
        parameters=model.spec.parameter_count(),
        weight_bytes_per_token=model.spec.weight_bytes_per_token(),
    )
    return timed_result(row, samples[0.0], samples[ratio])


def _speeds(models: dict[float, Decoder], settings: SuiteSettings) -> dict[float, list[Sample]]:
    prompts = random_prompts(next(iter(models.values())).spec.vocab_size, 1, PROMPT_TOKENS)

    def once(engine: Engine) -> Sample:
        return generate_timed(engine, prompts, settings.new_tokens)[1]

    runs: dict[str, Run] = {str(ratio): functools.partial(once, make_engine(m, 1)) for ratio, m in models.items()}
    found = interleave(runs, settings.rounds, "Decoding")
    return {ratio: found[str(ratio)] for ratio in models}

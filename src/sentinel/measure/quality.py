"""The quality suite: perplexity and speed of every criterion at every pruning ratio, with and without compensation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sentinel.adapt.corpora import Text, Windows, refuse_shared_documents
from sentinel.adapt.plan import RemovalOrder
from sentinel.adapt.prune import Pruner, Settings
from sentinel.infer.engines import make_engine
from sentinel.infer.generate import Timings, generate_tokens
from sentinel.measure.bench import interleave, random_prompts, timing_sample
from sentinel.measure.judge import Judge
from sentinel.measure.results import Result, Sample, median, percentiles, speedup
from sentinel.models.decoder import Decoder
from sentinel.models.sources import LoadedModel
from sentinel.progress import say

REFERENCE = "level 1, not pruned"


@dataclass(frozen=True)
class QualitySettings:
    """``criteria`` x ``ratios`` of heads; ``eval_tokens`` per text; speed over ``rounds`` of 64 + ``new_tokens``."""

    criteria: tuple[str, ...]
    ratios: tuple[float, ...] = (0.3, 0.5, 0.7)
    eval_tokens: int = 4096
    context: int = 512
    rounds: int = 5
    new_tokens: int = 20


def bench_quality(
    loaded: LoadedModel, windows: Windows, texts: Sequence[Text], settings: QualitySettings
) -> list[Result]:
    """Rows of the quality suite; perplexities are ratios to the dense model's, the mean over ``texts``.

    Raises `InputError` for random weights, and when a text shares a document with the calibration windows.
    """
    loaded.require_real_weights("a perplexity")
    refuse_shared_documents(windows.fingerprints, texts)
    tokenizer, dense = loaded.require_tokenizer(), loaded.decoder
    judge = Judge(dense, tokenizer, texts, tokens_per_text=settings.eval_tokens, context=settings.context)
    base = Result(
        suite="quality",
        model=loaded.name,
        weights=loaded.weights,
        engine=REFERENCE,
        level=1,
        precision="fp32",
        heads_pruned=0.0,
        neurons_pruned=0.0,
        batch=1,
        prompt_tokens=64,
        new_tokens=settings.new_tokens,
        speedup_over=REFERENCE,
        text=", ".join(text.label for text in texts),
        context=settings.context,
    )
    rows: list[Result] = []
    calibrated: Pruner | None = None
    for criterion in settings.criteria:
        say(f"quality: criterion {criterion}")
        pruner = Pruner(dense, Settings(criterion), windows)
        pruner.share_calibration(calibrated)
        calibrated = pruner if pruner.has_calibration else calibrated
        order = pruner.order(max(settings.ratios), 0.0)
        rows += _criterion_rows(base, judge, pruner, order, settings, with_dense=not rows)
    return rows


def _criterion_rows(
    base: Result, judge: Judge, pruner: Pruner, order: RemovalOrder, settings: QualitySettings, *, with_dense: bool
) -> list[Result]:
    plans = [order.plan(ratio) for ratio in settings.ratios]
    compensated = pruner.apply(plans)
    plain = replace_settings(pruner, compensate=False).apply(plans)
    samples = _speeds({0.0: pruner.dense, **dict(zip(settings.ratios, plain, strict=True))}, settings)
    ranks = [[int(rank) for rank in layer] for layer in order.group_ranks]
    rows = [_timed(replace(base, **judge(pruner.dense)), samples, 0.0, pruner.dense)] if with_dense else []
    for kind, models in ((False, plain), (True, compensated)):
        for ratio, model in zip(settings.ratios, models, strict=True):
            row = replace(
                base,
                engine=f"{order.criterion}{', compensated' if kind else ''}",
                criterion=order.criterion,
                compensated=kind,
                heads_pruned=ratio,
                head_ranks=ranks,
                **judge(model),
            )
            rows.append(_timed(row, samples, ratio, model))
    return rows


def replace_settings(pruner: Pruner, *, compensate: bool) -> Pruner:
    """The same pruner with or without compensation."""
    return Pruner(pruner.dense, replace(pruner.settings, compensate=compensate), pruner.windows)


def _timed(row: Result, samples: dict[float, list[Sample]], ratio: float, model: Decoder) -> Result:
    found, reference = samples[ratio], samples[0.0]
    gain = speedup(reference, found, "total_ms")
    return replace(
        row,
        tokens_per_s=(row.new_tokens or 0) / median(found, "total_ms") * 1e3,
        ttft_ms=median(found, "ttft_ms"),
        tpot_ms=median(found, "tpot_ms"),
        speedup=gain.value,
        speedup_low=gain.low,
        speedup_high=gain.high,
        parameters=model.spec.parameter_count(),
        weight_bytes_per_token=model.spec.weight_bytes_per_token(),
        samples=found,
        percentiles=percentiles(found),
    )


def _speeds(models: dict[float, Decoder], settings: QualitySettings) -> dict[float, list[Sample]]:
    prompts = random_prompts(next(iter(models.values())).spec.vocab_size, 1, 64)

    def runner(model: Decoder) -> Callable[[], Sample]:
        engine = make_engine(model, 1)

        def run() -> Sample:
            timings = Timings()
            list(generate_tokens(engine, prompts, settings.new_tokens, timings=timings))
            return timing_sample(timings)

        return run

    found = interleave({str(ratio): runner(model) for ratio, model in models.items()}, settings.rounds, "Decoding")
    return {ratio: found[str(ratio)] for ratio in models}

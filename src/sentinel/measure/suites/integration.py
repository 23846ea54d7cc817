"""Skips and baseline integration against the plain model: tokens/s, parameters and perplexity of five configurations.

Every pruning ratio is a run of its own, with the reference in each of its rounds: the plain, unpruned model computed head
by head. With recovery, all configurations learn for the same number of steps before they are judged. Without it, a fresh
integration being the identity, there is no perplexity to tell, and heads are removed from the end of every layer, since
speed does not depend on which ones go.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sentinel.adapt.integration import CONFIGURATIONS, Configuration, integrate, require_plain
from sentinel.adapt.pruning.compact import expand_kv, select
from sentinel.infer.engine import warm_up
from sentinel.infer.opening import make_engine
from sentinel.measure.results import Result
from sentinel.measure.suites.engines import Subject
from sentinel.measure.suites.generation import check_fits, generate_in_turn
from sentinel.measure.suites.recovered import Judged, Recovered
from sentinel.measure.suites.request import Request
from sentinel.models.decoder import Decoder
from sentinel.models.width import Width
from sentinel.progress import working

ORIGINAL, PLAIN = "original", "minimal"
HOW = ("recovery_steps", "criterion", "compensated")  # how a model was made, whatever precision it then runs in


def run(request: Request) -> list[Result]:
    """A row per ratio, level and configuration ("original" at level 0 only)."""
    check_fits(request)
    require_plain(request.loaded.decoder, "the integration suite")
    quality = Recovered(request) if _judged(request) else None
    return [row for heads in request.settings.heads for row in _rows_at(request, heads, quality)]


def _judged(request: Request) -> bool:
    """True when there is a perplexity to tell. Recovery that was asked for by name is never left out in silence."""
    loaded = request.loaded
    possible = loaded.weights == "real" and loaded.tokenizer is not None
    return request.settings.recovery_steps > 0 and (possible or "recovery_steps" in request.given)


def _rows_at(request: Request, heads: float, quality: Recovered | None) -> list[Result]:
    unpruned = request.loaded.decoder
    subjects = [_subject(request, CONFIGURATIONS[ORIGINAL], unpruned, 0, 0.0)]
    judged: dict[str, dict[str, Any]] = {}
    for name, (model, fields) in _models(unpruned, heads, quality).items():
        configuration, judged[name] = CONFIGURATIONS[name], fields
        if name == ORIGINAL and not heads:
            continue  # it is the reference
        levels = (0,) if configuration.head_by_head else request.levels
        subjects += [_subject(request, configuration, model, level, heads) for level in levels]
    found = generate_in_turn(request, "integration", subjects, batch=request.settings.batch)
    rows = []
    for one in found if not heads else found[1:]:
        assert one.subject.configuration is not None
        spec = one.subject.spec
        before = spec.parameter_count(baseline=False) - spec.fusion_weights
        told = judged[one.subject.configuration]
        if one.subject.precision != "fp32":  # it was judged in fp32
            told = {name: told[name] for name in HOW if name in told}
        rows.append(
            replace(
                one.row,
                engine=f"{one.subject.engine.name}, {one.subject.configuration}",
                configuration=one.subject.configuration,
                parameters=before + spec.fusion_weights,
                parameters_before=before,
                growth=spec.fusion_weights / before,
                **told,
            )
        )
    return rows


def _models(unpruned: Decoder, heads: float, quality: Recovered | None) -> dict[str, Judged]:
    """The model of every configuration, with what is known of its quality. "original" is the plain model, as minimal is."""
    pruned = without_last_heads(unpruned, heads) if quality is None else quality.pruned(heads)
    made: dict[str, Judged] = {}
    for name in (PLAIN, *(name for name in CONFIGURATIONS if name not in (PLAIN, ORIGINAL))):
        if quality is None:
            made[name] = integrate(pruned, name, baseline=unpruned), {}
        else:
            made[name] = quality.made(name, pruned, heads)
    return {name: made[PLAIN if name == ORIGINAL else name] for name in CONFIGURATIONS}


def without_last_heads(decoder: Decoder, ratio: float) -> Decoder:
    """``decoder`` without that share of its heads, the same in every layer but for rounding.

    Grouped keys and values are repeated first, so that single heads can go.
    """
    if not ratio:
        return decoder
    single, kept, exact = expand_kv(decoder), [], 0.0
    for layer in single.spec.layers:
        exact += (1 - ratio) * layer.n_head
        kept.append(min(layer.n_head, round(exact) - sum(kept)))  # so that what is rounded does not add up
    return select(single, Width(tuple(kept), Width.full(single.spec).neurons).kept)


def _subject(request: Request, configuration: Configuration, decoder: Decoder, level: int, heads: float) -> Subject:
    with working(f"Preparing {configuration.name} at level {level}"):
        engine = make_engine(decoder, level, threads=request.engines.threads)
        warm_up(engine)
    return Subject(engine, decoder.spec, level, engine.precision, heads, configuration=configuration.name)

"""What to run: one configuration per need, chosen by a stated rule among measurements of this machine."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sentinel.errors import InputError
from sentinel.measure.results import ResultSet
from sentinel.models.record import SELF
from sentinel.report.candidates import (
    EQUAL_QUALITY,
    Candidate,
    Shape,
    candidates,
    frontier,
    missing,
    perplexity_ratios,
    rows_of_model,
)
from sentinel.report.cells import engine_name

EQUAL_BYTES = 0.01
EQUAL_SPEED = 0.03  # speeds that differ by less are not told apart: two runs of one suite differ as much


@dataclass(frozen=True)
class Rule:
    """How a need is met. ``limit`` is the increase in perplexity that is accepted when nothing was demanded."""

    need: str
    limit: float | None
    wins: str


RULES = {
    rule.need: rule
    for rule in (
        Rule("default", 0.05, "is the fastest"),
        Rule("latency", 0.25, "has the shortest time per token"),
        Rule("quality", None, "has the lowest perplexity, and is the fastest that has"),
        Rule("memory", 0.25, "has the fewest bytes of weights"),
    )
}


@dataclass(frozen=True)
class Demand:
    """What a user asks for; None leaves a limit out, of perplexity to the need's own."""

    need: str = "default"
    max_perplexity_increase: float | None = None
    max_memory_mb: float | None = None
    min_tokens_per_s: float | None = None

    @property
    def rule(self) -> Rule:
        if self.need not in RULES:
            raise InputError(f"there is no need {self.need!r}; choose {', '.join(RULES)}")
        return RULES[self.need]

    @property
    def limit(self) -> float | None:
        return self.rule.limit if self.max_perplexity_increase is None else self.max_perplexity_increase


@dataclass(frozen=True)
class Recommendation:
    """``chosen`` is None when nothing meets the demand; ``reason`` then says what came closest."""

    demand: Demand
    chosen: Candidate | None
    reason: str
    frontier: list[Candidate]
    missing: list[str]
    commands: list[str]


def recommend(results: ResultSet, model: str, demand: Demand) -> Recommendation:
    """The configuration of ``model`` that meets ``demand``, on the frontier of speed, perplexity and bytes of weights.

    Raises `InputError` when the results do not hold what the question needs.
    """
    rows = rows_of_model(results.results, model)
    found = candidates(rows)
    if not found:
        raise InputError(f"the results hold no speed of {model}; measure it with 'sentinel bench levels {model}'")
    if demand.need == "quality" and not perplexity_ratios(rows):
        raise InputError(f"the results hold no perplexity of {model}; measure it with 'sentinel bench quality {model}'")
    if demand.max_memory_mb is not None and all(c.peak_memory_mb is None for c in found):
        raise InputError(f"the results hold no peak memory of {model}; measure it with 'sentinel bench decode {model}'")
    return decide(found, demand, missing(found, rows, model), lambda chosen: commands(chosen, results, model))


def decide(
    found: Sequence[Candidate], demand: Demand, said: list[str], how: Callable[[Candidate], list[str]]
) -> Recommendation:
    """What of ``found`` meets ``demand`` best; ``said`` is what is missing, ``how`` gives the commands that run it."""
    best = frontier(found)
    fitting = [c for c in best if meets(c, demand)]
    if not fitting:
        return Recommendation(demand, None, _why_not(best, demand), best, said, [])
    chosen = choose(fitting, demand.rule)
    return Recommendation(demand, chosen, _reason(chosen, demand), best, said, how(chosen))


def meets(candidate: Candidate, demand: Demand) -> bool:
    """True when nothing that was measured of a candidate breaks a limit, and nothing that is limited is unknown."""
    ratio, memory = candidate.perplexity_ratio, candidate.peak_memory_mb
    return (
        ratio is not None
        and (demand.limit is None or ratio <= 1 + demand.limit)
        and (demand.max_memory_mb is None or (memory is not None and memory <= demand.max_memory_mb))
        and (demand.min_tokens_per_s is None or candidate.tokens_per_s >= demand.min_tokens_per_s)
    )


def choose(fitting: Sequence[Candidate], rule: Rule) -> Candidate:
    """The candidate that the rule names. What can't be told apart in it is decided by quality, then by speed."""
    if rule.need == "quality":
        lowest = min(_ratio(c) for c in fitting)
        return max((c for c in fitting if _ratio(c) <= lowest * (1 + EQUAL_QUALITY)), key=lambda c: c.tokens_per_s)
    costs = {
        "default": lambda c: 1 / c.tokens_per_s,
        "latency": lambda c: c.tpot_ms,
        "memory": lambda c: float("inf") if c.weights_mb is None else c.weights_mb,
    }
    cost, same = costs[rule.need], EQUAL_BYTES if rule.need == "memory" else EQUAL_SPEED
    least = min(cost(c) for c in fitting)
    return min((c for c in fitting if cost(c) <= least * (1 + same)), key=lambda c: (_ratio(c), -c.tokens_per_s))


def _ratio(candidate: Candidate) -> float:
    return float("inf") if candidate.perplexity_ratio is None else candidate.perplexity_ratio


def limits_in_words(demand: Demand) -> str:
    """The limits of a demand, with "and" between; empty without any."""
    parts = []
    if demand.limit is not None:
        parts.append(f"a perplexity at most {100 * demand.limit:g} % above the dense model's")
    if demand.max_memory_mb is not None:
        parts.append(f"a peak memory of at most {demand.max_memory_mb:,.0f} MB")
    if demand.min_tokens_per_s is not None:
        parts.append(f"at least {demand.min_tokens_per_s:,.4g} tokens/s")
    return " and ".join(parts)


def _reason(chosen: Candidate, demand: Demand) -> str:
    limits = limits_in_words(demand)
    among = f"Of the configurations with {limits}, " if limits else "Of the configurations measured, "
    memory = "" if chosen.weights_mb is None else f", {chosen.weights_mb:,.0f} MB of weights"
    memory += "" if chosen.peak_memory_mb is None else f" ({chosen.peak_memory_mb:,.0f} MB at the peak of its process)"
    return (
        f"{among}{chosen.name} {demand.rule.wins}: {chosen.tokens_per_s:,.1f} tokens/s{_over_reference(chosen)}, "
        f"perplexity {quality_in_words(chosen)}{memory}."
    )


def _over_reference(candidate: Candidate) -> str:
    row = candidate.speed
    if row.speedup is None or row.engine == row.speedup_over or not row.has_interval or row.no_difference:
        return ""
    return f" ({row.speedup:.2f}x {engine_name(row.speedup_over)})"


def change(ratio: float | None) -> str:
    """A perplexity over the dense model's, as a change in percent."""
    if ratio is None:
        return "not measured"
    return "unchanged" if abs(ratio - 1) < EQUAL_QUALITY / 2 else f"{100 * (ratio - 1):+.1f} %"


def quality_in_words(candidate: Candidate) -> str:
    """A candidate's change in perplexity; what was not measured here but is stored says so."""
    return change(candidate.perplexity_ratio) + (" (stored)" if candidate.is_stored else "")


def _why_not(best: Sequence[Candidate], demand: Demand) -> str:
    said = f"Nothing that was measured has {limits_in_words(demand)}"
    if not best:
        return f"{said}, as no perplexity was measured; measure it with 'sentinel bench quality'."
    nearest = min(best, key=lambda candidate: _excess(candidate, demand))
    reached = [f"{nearest.tokens_per_s:,.1f} tokens/s", f"perplexity {change(nearest.perplexity_ratio)}"]
    if demand.max_memory_mb is not None:
        known = nearest.peak_memory_mb
        reached.append("peak memory not measured" if known is None else f"{known:,.0f} MB at the peak")
    return f"{said}; nearest is {nearest.name} ({', '.join(reached)}): ask for less, or measure more configurations."


def _excess(candidate: Candidate, demand: Demand) -> float:
    """By which factor a candidate breaks the limit that it breaks the most; at most 1 for one that meets them all."""
    factors = [0.0]
    if demand.limit is not None:
        factors.append(_ratio(candidate) / (1 + demand.limit))
    if demand.max_memory_mb is not None:
        memory = candidate.peak_memory_mb
        factors.append(float("inf") if memory is None else memory / demand.max_memory_mb)
    if demand.min_tokens_per_s is not None:
        factors.append(demand.min_tokens_per_s / max(candidate.tokens_per_s, 1e-9))
    return max(factors)


def commands(chosen: Candidate, results: ResultSet, model: str) -> list[str]:
    """The commands that make and run a candidate."""
    shape = chosen.shape
    folder = model.rsplit("/", 1)[-1]
    run = f"--level {chosen.level}" + (f" --precision {shape.precision}" if chosen.level == 3 else "")
    text = _calibration(chosen, results)
    if not (shape.heads or shape.neurons):
        return _run(model, folder, run, shape.precision, text)
    criterion = chosen.quality.criterion if chosen.quality is not None else None
    extra = f" --criterion {criterion}" if criterion else ""
    extra += " --no-compensate" if chosen.quality is not None and chosen.quality.compensated is False else ""
    extra += " --expand-kv" if results.runs.get(chosen.speed.suite, {}).get("expand_kv") else ""
    extra += text
    if shape.neurons:
        made = (
            f"sentinel prune {model} -o {folder}-pruned --heads {shape.heads / 100:g} --neurons {shape.neurons / 100:g}"
        )
        return [made + extra, *_run(f"{folder}-pruned", f"{folder}-pruned", run, shape.precision, text)]
    made = f"sentinel prune {model} -o {folder}-elastic --elastic {shape.heads / 100:g}{extra}"
    heads = f" --heads {shape.heads / 100:g}"
    return [made, *_run(f"{folder}-elastic", f"{folder}-elastic", run, shape.precision, text, heads)]


def _calibration(chosen: Candidate, results: ResultSet) -> str:
    """The option that names the text that a candidate was calibrated on to be judged, where that is not the default."""
    run = {} if chosen.quality is None else results.runs.get(chosen.quality.suite, {})
    text = run.get("calibration", SELF)
    return "" if text == SELF else f" --calibration {shlex.quote(text)}"


def _run(model: str, folder: str, run: str, precision: str, text: str, width: str = "") -> list[str]:
    """The commands that run a model. int4 was judged as `sentinel quantize` makes it, on calibration text, so that it is
    made so first; int8 needs no text, and a start makes the same."""
    if precision != "int4":
        return [f'sentinel generate {model} "PROMPT" {run}{width}']
    return [
        f"sentinel quantize {model} -o {folder}-int4 --precision int4{text}",
        f'sentinel generate {folder}-int4 "PROMPT"{width}',
    ]


@dataclass(frozen=True)
class OriginalPreset:
    """A preset of the original report, as it was given there."""

    need: str
    says: str
    level: int
    heads: int


ORIGINAL_PRESETS = (
    OriginalPreset("default", "level 2, 50 % of heads", 2, 50),
    OriginalPreset("latency", "no baseline (the plain model), 50 % of heads", 1, 50),
    OriginalPreset("quality", "level 1, 30 % of heads", 1, 30),
    OriginalPreset("memory", "50 % of heads", 1, 50),
    OriginalPreset("memory", "70 % of heads", 1, 70),
)


def measured_original(preset: OriginalPreset, found: Sequence[Candidate]) -> Candidate | None:
    """What was measured here of a preset of the original report."""
    shape = Shape("fp32", preset.heads, 0)
    return next((c for c in found if c.level == preset.level and c.shape == shape), None)

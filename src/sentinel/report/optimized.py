"""What an optimisation found, as a page and as tables: the choice, the frontier that it came from, quality by kind."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sentinel.measure.judge import over_kinds
from sentinel.measure.results import Result, ResultSet
from sentinel.report.candidates import Candidate, Shape, frontier
from sentinel.report.cells import error, number, ratio, times
from sentinel.report.content import Content, environment_rows
from sentinel.report.frontier_chart import frontier_chart
from sentinel.report.glossary import GLOSSARY
from sentinel.report.recommend import Demand, Recommendation, change, decide, meets
from sentinel.report.tables import Table

PAGE, RESULTS = "optimize.html", "optimize.json"
SUITE = "optimize"
METHOD = (
    "Every configuration is built, packed for level 3 and judged against the model as loaded, on the same tokens of every "
    "kind of text; calibration, order and recovery have read none of these kinds.",
    "One half of the kinds chooses, the other half tells how good the choice is: whatever is chosen by a text looks better "
    "on it than it is.",
    "Speeds that are predicted are bytes of weights over the bandwidth at which memory was read, times a factor that whole "
    "and narrowest models took in each precision, all timed in turn. What could be chosen was then timed itself, in turn "
    "with int8 unpruned; only measured speeds are chosen from.",
    "Peak memory is that of a process of its own which opens the packed model and generates.",
)
NOTE = (
    "Right and low is good; the dashed line joins what no other configuration beats in both. Perplexity is on the kinds "
    "that choose. Speeds of what is beyond the limits are predicted."
)


@dataclass(frozen=True)
class Kinds:
    """Labels of the kinds of text that choose, and of those that tell how good the choice is."""

    choose: Sequence[str]
    tell: Sequence[str]


def candidates_of(rows: Sequence[Result], kinds: Kinds) -> list[Candidate]:
    """The rows as what can be chosen, by their perplexity on the kinds that choose."""
    found = [Candidate(row, row, over_kinds(row.by_kind, kinds.choose)[0], row.peak_memory_mb) for row in rows]
    return sorted(found, key=lambda c: c.tokens_per_s)


def conclude(rows: Sequence[Result], kinds: Kinds, demand: Demand, folder: str) -> Recommendation:
    """The choice among what was measured, with how good it is on the other kinds, and whether pruning pays."""
    found = [c for c in candidates_of(rows, kinds) if c.speed.samples]
    made = decide(found, demand, [], lambda _: _commands(folder))
    if made.chosen is None:
        return made
    value, spread = over_kinds(made.chosen.speed.by_kind, kinds.tell)
    told = "unknown" if value is None else f"{times(value)}{error(spread, 3)}"
    others = (
        f"On kinds of text that did not choose ({', '.join(kinds.tell)}) perplexity is {told} of the model as loaded"
    )
    if value is not None and demand.limit is not None and value > 1 + demand.limit:
        others += ", which is beyond the limit: ask for less, or judge by more text"
    return replace(made, reason=f"{made.reason} {others}. {whether_pruning_pays(made, rows, kinds)}")


def _commands(folder: str) -> list[str]:
    place = shlex.quote(folder)
    return [f'sentinel generate {place} "PROMPT"', f"sentinel serve {place}"]


def whether_pruning_pays(made: Recommendation, rows: Sequence[Result], kinds: Kinds) -> str:
    """A sentence on the pruned configurations beside the chosen one."""
    pruned = [c for c in candidates_of(rows, kinds) if c.shape.heads or c.shape.neurons]
    if made.chosen is not None and (made.chosen.shape.heads or made.chosen.shape.neurons):
        return "Pruning pays: no unpruned configuration within the limits is as fast."
    if not pruned:
        return "Nothing pruned pays: at no width that was asked for would the model be faster by more than noise."
    fitting = [c for c in pruned if c.speed.samples and meets(c, made.demand)]
    if fitting:
        best = max(fitting, key=lambda c: c.tokens_per_s)
        return (
            f"Nothing pruned pays: the fastest within the limits, {best.name}, has {best.tokens_per_s:,.1f} tokens/s."
        )
    best = min(pruned, key=lambda c: c.perplexity_ratio or float("inf"))
    cost = change(best.perplexity_ratio)
    return f"Nothing pruned pays: none is within the limits; the best, {best.name}, has perplexity {cost}."


def tables_of(rows: Sequence[Result], kinds: Kinds, made: Recommendation) -> list[Table]:
    """All configurations, fastest last; and each kind of text alone."""
    found = candidates_of(rows, kinds)
    best = frontier([c for c in found if c.speed.samples])
    lines, by_kind = [], []
    for c in found:
        row = c.speed
        chosen = made.chosen is not None and row is made.chosen.speed
        name = f"{'* ' if chosen else ''}{_short(c)}"
        means = [over_kinds(row.by_kind, part) for part in (kinds.choose, kinds.tell)]
        speed = number(c.tokens_per_s) + ("" if row.samples else " (predicted)")
        lines.append(
            [
                name,
                speed,
                ratio(row),
                *(f"{times(mean)}{error(spread, 3)}" for mean, spread in means),
                number(c.weights_mb, 0),
                number(c.peak_memory_mb, 0),
                "yes" if any(c is b for b in best) else "no",
            ]
        )
        each = [row.by_kind[kind] for kind in (*kinds.choose, *kinds.tell)]
        by_kind.append([name, *(times(k["perplexity_ratio"]) + error(k["perplexity_ratio_stderr"], 3) for k in each)])
    columns = ["configuration", "tokens/s", "speed-up over int8 unpruned", "over dense, kinds that choose"]
    columns += ["over dense, other kinds", "weights MB", "peak MB", "on the frontier"]
    first = rows[0]
    note = (
        f"{first.model} at level 3; {first.prompt_tokens} prompt and {first.new_tokens} new tokens, batch 1. In percent: "
        "heads/neurons removed. * is what was chosen."
    )
    heads = [f"{kind} ({'chooses' if kind in kinds.choose else 'tells'})" for kind in (*kinds.choose, *kinds.tell)]
    tokens = ", ".join(f"{kind} {one['tokens']:,}" for kind, one in first.by_kind.items())
    return [
        Table(SUITE, "Configurations", whether_pruning_pays(made, rows, kinds), note, columns, lines),
        Table(
            "kinds", "By kind of text", "No kind was seen by calibration, order or recovery.",
            f"Perplexity over the model as loaded, with the standard error of paired differences; tokens: {tokens}.",
            ["configuration", *heads], by_kind,
        ),
    ]  # fmt: skip


def _short(candidate: Candidate) -> str:
    """A configuration as a first column has room for on a phone."""
    shape = candidate.shape
    removed = f" {shape.heads}/{shape.neurons} %" if shape.heads or shape.neurons else ""
    return f"{shape.precision}{removed}{' recovered' if candidate.speed.recovery_steps else ''}"


def optimized_content(results: ResultSet, kinds: Kinds, made: Recommendation) -> Content:
    """The page's parts."""
    rows = results.results
    labels = {} if made.chosen is None else {"chosen": made.chosen}
    run = results.runs[SUITE]
    return Content(
        models=sorted({row.model for row in rows}),
        lead=made,
        recommendations=None,
        frontier=frontier_chart(candidates_of(rows, kinds), labels),
        frontier_note=NOTE,
        sections=tables_of(rows, kinds, made),
        charts={},
        missing=[],
        method=METHOD,
        glossary=GLOSSARY,
        runs=[(SUITE, "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in run.items()))],
        environment=environment_rows(results.environment),
    )


def shape_of(precision: str, width: tuple[float, float]) -> str:
    """A configuration in words."""
    return str(Shape(precision, round(100 * width[0]), round(100 * width[1])))

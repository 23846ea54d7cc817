"""What a report says, before it is drawn as HTML or Markdown: a pure function of a results file's content."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sentinel.errors import InputError
from sentinel.measure.results import Environment, Result, ResultSet
from sentinel.measure.suites import SUITES
from sentinel.report.candidates import STORED, Candidate, candidates
from sentinel.report.cells import number
from sentinel.report.charts import charts
from sentinel.report.frontier_chart import frontier_chart
from sentinel.report.glossary import GLOSSARY
from sentinel.report.recommend import RULES, Demand, Recommendation, recommend
from sentinel.report.recommend_view import presets_table
from sentinel.report.store import with_stored
from sentinel.report.tables import Table, tables

METHOD = (
    "Everything that is compared takes turns: each round runs every engine once, the reference included, after a warm-up "
    "round. Compilation is never inside a timing.",
    "A speed is a median over the rounds. A speed-up is a ratio of medians with its 95 % interval, from 2,000 bootstrap "
    "draws of rounds in pairs; an interval that spans 1 is printed as no difference.",
    "The same configuration stands in several tables, in each with the speed of that table's own rounds and over the "
    "reference that its heading names. Recommendations take the table 'Pruning: speed', where there is one.",
    "A machine drifts within minutes. Rounds of a suite with several passes are spread over the whole run, and the "
    "bootstrap draws passes first, then rounds of them, so that intervals tell the drift too.",
    "Tokens/s count new tokens over the whole time, prefill included, unless the phase is decode. Prompts are random token "
    "ids, on which speed does not depend; sampling is greedy.",
    "A roofline is a rate of reading over the bytes of weights, keys and values that one step must read. The rate is that "
    "at which the engine's own threads read as many bytes and do nothing else, measured after every sample; what fits the "
    "last-level cache has none. MBU above 100 % is marked where the interval excludes 100 %.",
    "Only level 0 masks pruned heads, which saves nothing; wherever heads are said to be removed, they are gone.",
    "Perplexities are of texts that share no document with calibration; over dense is the ratio to the model that was not "
    "changed, on the same tokens, as geometric mean over kinds of text that calibration, order and recovery have not seen. "
    "Recommendations go by that mean; what is known on seen kinds alone stands in tables and is recommended by nothing.",
    "Levels 0 to 2 compute the same function in fp32, so that one perplexity is theirs in common. Speed and quality are "
    "joined only for the same precision and the same removed shares.",
)
FRONTIER = (
    "Every configuration whose speed and quality are both known; the dashed line joins those that no other beats in both. "
    "Right and low is good. Names mark what is recommended."
)
STORED_QUALITY = " Speeds are of here; what is marked as stored has the perplexity of the stored full run below."


@dataclass(frozen=True)
class Content:
    """The parts of a report in the order in which they are read."""

    models: list[str]
    lead: Recommendation | None
    recommendations: Table | None
    frontier: Any
    frontier_note: str
    sections: list[Table]
    charts: dict[str, list[Any]]
    missing: list[str]
    method: Sequence[str]
    glossary: Mapping[str, str]
    runs: list[tuple[str, str]]
    environment: list[tuple[str, str]]


def content_of(results: ResultSet) -> Content:
    """Everything that a report says of ``results``; what they do not hold is named in ``missing``."""
    if not results.results:
        raise InputError("the results hold no rows, so that there is nothing to report; measure with 'sentinel report'")
    results = with_stored(results)
    rows = results.results
    model = main_model(rows)
    found = candidates([row for row in rows if row.model == model])
    lead = _recommended(results, model, "default")
    return Content(
        models=sorted({row.model for row in rows if row.suite != "scaling"} or {row.model for row in rows}),
        lead=lead,
        recommendations=presets_table(results, model) if found else None,
        frontier=frontier_chart(found, _labels(results, model)),
        frontier_note=FRONTIER + (STORED_QUALITY if any(c.is_stored for c in found) else ""),
        sections=[_sourced(table, results) for table in tables(rows)],
        charts=charts(rows),
        missing=[*_missing_suites(rows, model), *_missing_passes(results), *_missing_rows(lead, found, model)],
        method=METHOD,
        glossary=GLOSSARY,
        runs=[(name, _settings(name, run)) for name, run in results.runs.items() if name != STORED],
        environment=environment_rows(results.environment),
    )


def _sourced(table: Table, results: ResultSet) -> Table:
    """The table of stored rows with where they are from; every other one as it is."""
    if table.suite != STORED:
        return table
    return replace(table, note=f"{results.runs[STORED]['provenance']} {table.note}")


def main_model(rows: Sequence[Result]) -> str:
    """The model that most rows are of."""
    return Counter(row.model for row in rows).most_common(1)[0][0]


def _recommended(results: ResultSet, model: str, need: str) -> Recommendation | None:
    try:
        return recommend(results, model, Demand(need))
    except InputError:  # the results do not hold what this need asks for; the missing parts are named on their own
        return None


def _labels(results: ResultSet, model: str) -> dict[str, Candidate]:
    made = {need: _recommended(results, model, need) for need in RULES}
    return {need: one.chosen for need, one in made.items() if one is not None and one.chosen is not None}


def _missing_suites(rows: Sequence[Result], model: str) -> list[str]:
    there = {row.suite for row in rows}
    return [
        f"Suite {suite.name} was not run ({suite.summary}): 'sentinel bench {suite.name} {model}' does."
        for suite in SUITES.values()
        if suite.in_report and suite.name not in there
    ]


def _missing_passes(results: ResultSet) -> list[str]:
    wanted = {name: run.get("passes", 1) for name, run in results.runs.items()}
    return [
        f"Suite {name} was measured in {results.passes_of(name)} of {passes} passes: 'sentinel report --resume' goes on."
        for name, passes in wanted.items()
        if results.passes_of(name) < passes
    ]


def _missing_rows(lead: Recommendation | None, found: Sequence[Candidate], model: str) -> list[str]:
    if lead is not None:
        return lead.missing
    return [] if found else [f"No level of {model} was timed, so that nothing can be recommended."]


def _settings(suite: str, run: dict[str, Any]) -> str:
    """The settings that a suite reads as words; lists with commas."""
    read = {*SUITES[suite].options, "passes"} if suite in SUITES else run.keys() - {"model", "weights"}
    said = []
    for name, value in run.items():
        if name not in read or value in (None, [], ""):
            continue
        text = ", ".join(
            f"{v:g}" if isinstance(v, float) else str(v) for v in (value if isinstance(value, list) else [value])
        )
        said.append(f"{name.replace('_', ' ')} {text}")
    return "; ".join(said)


def environment_rows(environment: Environment) -> list[tuple[str, str]]:
    """The environment in words."""
    memory = [f"{number(environment.memory_gb)} GB"]
    if environment.last_level_cache_mb is not None:
        memory.append(f"last-level cache {number(environment.last_level_cache_mb)} MB")
    if environment.bandwidth_gb_s is not None:  # of older files
        memory.append(f"highest bandwidth of a copy or a sum: {number(environment.bandwidth_gb_s)} GB/s")
    mhz, steal = environment.cpu_mhz, environment.steal
    notes = [] if not mhz else [" then ".join(f"{number(value, 0)} MHz" for value in mhz)]
    notes += [] if steal is None else [f"{100 * steal:.1f} % of processor time stolen by the host"]
    return [
        ("Processor", f"{environment.cpu}, {environment.cores} cores, {environment.threads} threads used"),
        ("While measuring", ", ".join(notes) or "not told by the system"),
        ("Memory", "; ".join(memory)),
        ("System", environment.system),
        ("Device", environment.device),
        ("Versions", ", ".join(f"{name} {version}" for name, version in environment.versions.items())),
        ("Measured", environment.measured_at),
    ]

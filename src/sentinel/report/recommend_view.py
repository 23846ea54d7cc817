"""Recommendations as text: in the terminal, as JSON, and as rows of a report's tables."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from sentinel.errors import InputError
from sentinel.measure.results import ResultSet
from sentinel.report.candidates import STORED, Candidate, candidates, rows_of_model
from sentinel.report.cells import number
from sentinel.report.recommend import (
    ORIGINAL_PRESETS,
    RULES,
    Demand,
    Recommendation,
    measured_original,
    quality_in_words,
    recommend,
)
from sentinel.report.tables import Table
from sentinel.report.terminal import print_table, stdout_console

COLUMNS = ["configuration", "tokens/s", "perplexity over dense", "weights MB", "peak MB", "ms per token"]


def cells(candidate: Candidate) -> list[str]:
    """A candidate's row under `COLUMNS`."""
    return [
        candidate.name,
        number(candidate.tokens_per_s),
        quality_in_words(candidate),
        number(candidate.weights_mb, 0),
        number(candidate.peak_memory_mb, 0),
        number(candidate.speed.tpot_ms, 2),
    ]


def presets_table(results: ResultSet, model: str) -> Table:
    """Our choice for every need and, below each, what the original report gave, as measured here."""
    found = candidates(rows_of_model(results.results, model))
    rows = []
    for need in RULES:
        try:
            chosen = recommend(results, model, Demand(need)).chosen
        except InputError:  # the results lack what this need asks for; the sentences on what is missing say it
            chosen = None
        ours = ["nothing measured meets it", *["–"] * 5] if chosen is None else cells(chosen)
        rows.append([f"{need}: chosen here", *ours])
        for preset in ORIGINAL_PRESETS:
            if preset.need == need:
                there = measured_original(preset, found)
                rest = ["–", "not measured", "–", "–", "–"] if there is None else cells(there)[1:]
                rows.append([f"{need}: original report", preset.says, *rest])
    note = (
        "Rules: "
        + "; ".join(_rule_in_words(need) for need in RULES)
        + ". Only configurations on the frontier of speed, "
        "perplexity and bytes of weights take part. The original report is that of the research code which this library "
        "started from; its presets are quoted in their words, and the numbers beside them are of here, with heads that are "
        "really removed. 'sentinel optimize' searches precisions and widths for one goal and writes the best."
    )
    return Table("recommendations", "Recommendations", _finding(rows), note, ["need", *COLUMNS], rows)


def _finding(rows: list[list[str]]) -> str:
    """What is chosen for every need; needs that share a choice share its name."""
    chosen: dict[str, list[str]] = {}
    for need, name in ((row[0].partition(":")[0], row[1]) for row in rows if row[0].endswith("chosen here")):
        chosen.setdefault(name, []).append(need)
    return "Chosen for " + "; for ".join(f"{', '.join(needs)}: {name}" for name, needs in chosen.items()) + "."


def _rule_in_words(need: str) -> str:
    rule = RULES[need]
    limit = "" if rule.limit is None else f" with a perplexity at most {100 * rule.limit:g} % higher"
    return f"{need}: {rule.wins}{limit}".replace(": is the", ": the").replace(": has the", ": the")


def recommendation_json(found: Recommendation, model: str) -> str:
    """The choice, what it was chosen from, and what is missing."""

    def described(candidate: Candidate) -> dict[str, Any]:
        shape = dataclasses.asdict(candidate.shape)
        speed = {name: getattr(candidate.speed, name) for name in ("tokens_per_s", "tpot_ms")}
        speed |= {"weights_mb": candidate.weights_mb, "peak_memory_mb": candidate.peak_memory_mb}
        quality = {"perplexity_ratio": candidate.perplexity_ratio, "perplexity_is_stored": candidate.is_stored}
        return {"level": candidate.level, **shape, **speed, **quality}

    body = {
        "schema": "sentinel-recommendation/1",
        "model": model,
        "demand": dataclasses.asdict(found.demand),
        "chosen": None if found.chosen is None else described(found.chosen),
        "reason": found.reason,
        "commands": found.commands,
        "frontier": [described(c) for c in found.frontier],
        "missing": found.missing,
    }
    return json.dumps(body, indent=1) + "\n"


def print_recommendation(found: Recommendation, results: ResultSet, model: str) -> None:
    """Print the choice, its commands, the frontier, the original report's presets, and what is missing."""
    console = stdout_console()
    console.print(found.reason, markup=False, style="bold")
    for command in found.commands:
        console.print(f"  {command}", markup=False, soft_wrap=True)
    frontier = [["*" if c is found.chosen else "", *cells(c)] for c in found.frontier]
    print_table(console, ["", *COLUMNS], frontier, "Frontier of speed, perplexity and bytes of weights", left=2)
    presets = presets_table(results, model)
    print_table(console, presets.columns, presets.rows, presets.title, left=2)
    console.print(presets.note, style="dim", markup=False)
    if STORED in results.runs:
        console.print(f"(stored): {results.runs[STORED]['provenance']}", style="dim", markup=False)
    for sentence in found.missing:
        console.print(sentence, style="dim", markup=False)

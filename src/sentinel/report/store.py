"""Quality that a full run measured on another machine, shipped with the package and named as such.

Quality hardly depends on the machine, speed does. So only perplexities are kept, for the very weights that they were
measured of, and they are joined with speeds of here only where heads were removed in the same way. A results file of a full
run becomes the stored one of its model by ``python -m sentinel.report.store RESULTS.json``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sentinel.errors import InputError
from sentinel.measure.results import Environment, Result, ResultSet
from sentinel.measure.suites import SUITES
from sentinel.report.candidates import STORED, Shape

FOLDER = Path(__file__).parent / "stored"
SUITE = "quality"
# What is kept of a row: which configuration it is, and how good. Never how fast.
KEPT = (
    "suite", "model", "weights", "engine", "level", "precision", "heads_pruned", "neurons_pruned", "criterion",
    "compensated", "text", "context", "tokens", "perplexity", "perplexity_stderr", "perplexity_ratio",
    "perplexity_ratio_stderr", "bits_per_byte", "seen_kind", "by_kind", "parameters", "weight_bytes_per_token",
    "head_ranks",
)  # fmt: skip


def trimmed(full: ResultSet) -> ResultSet:
    """The quality rows of a full run, without speeds. Raises `InputError` for a run that pruned nothing."""
    run = full.runs.get(SUITE, {})
    rows = [row for row in full.results if row.suite == SUITE and row.perplexity is not None]
    if not rows or not run.get("fingerprint") or not any(row.heads_pruned for row in rows):
        raise InputError(
            "the results hold no quality of pruned models with the fingerprint of their weights; measure it with "
            "'sentinel bench quality'"
        )
    kept = [Result(**{name: getattr(row, name) for name in KEPT}) for row in rows]
    return ResultSet(full.environment, kept, {SUITE: run})


def store(source: str | Path, folder: Path | None = None) -> Path:
    """Write the stored results of the model of ``source``, a results file of a full run, and tell where they are."""
    found = trimmed(ResultSet.read(source))
    (folder or FOLDER).mkdir(exist_ok=True)
    path = (folder or FOLDER) / f"{found.runs[SUITE]['model'].rsplit('/', 1)[-1]}.json"
    found.write(path)
    return path


def with_stored(results: ResultSet, folder: Path | None = None) -> ResultSet:
    """``results`` with the stored quality of the same weights as rows of a suite of its own, and a run that tells whence.

    Unchanged when nothing is stored of these weights, when heads were removed in another way here, and when everything
    that is stored was judged here too.
    """
    for file in sorted((folder or FOLDER).glob("*.json")):
        stored = ResultSet.read(file)
        run = stored.runs[SUITE]
        here = {name: one for name, one in results.runs.items() if one.get("fingerprint") == run["fingerprint"]}
        # Of a suite that does not prune, a run holds the setting's default, which says nothing.
        pruned = [one for name, one in here.items() if name in SUITES and "expand_kv" in SUITES[name].options]
        ways = {one["expand_kv"] for one in pruned if "expand_kv" in one}
        if not here or ways - {run["expand_kv"]}:
            continue
        judged = {Shape.of(row) for row in results.results if row.suite == SUITE and row.perplexity is not None}
        if all(Shape.of(row) in judged for row in stored.results):
            continue
        rows = [replace(row, suite=STORED, model=next(iter(here.values()))["model"]) for row in stored.results]
        told = {**run, "provenance": provenance(stored.environment, run)}
        return replace(results, results=[*results.results, *rows], runs={**results.runs, STORED: told})
    return results


def provenance(place: Environment, run: Mapping[str, Any]) -> str:
    """Which run the stored rows are of, in a sentence."""
    return (
        f"Not measured here: stored results of a full run on {place.cpu}, {place.cores} cores, {place.measured_at[:10]}, "
        f"sentinel {place.versions.get('sentinel', 'of unknown version')}, by '{command(run)}'. The weights are the same "
        f"(fingerprint {run['fingerprint']}), and no speed is taken from them."
    )


def command(run: Mapping[str, Any]) -> str:
    """The command that measures a quality run anew: what its settings change of the suite's own."""
    said = [f"sentinel bench {SUITE} {run['model']}"]
    for name, usual in SUITES[SUITE].options.items():
        value = run.get(name, usual)
        value = tuple(value) if isinstance(value, list) else value
        if value == usual:
            continue
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        said.append(f"--{name.replace('_', '-')}" + ("" if value is True else f" {text}"))
    return " ".join(said)


def main(arguments: Sequence[str] | None = None) -> int:
    """For developers: keep the quality of a full run with the package."""
    parser = argparse.ArgumentParser(prog="python -m sentinel.report.store", description=main.__doc__)
    parser.add_argument("source", metavar="RESULTS.json", help="of 'sentinel report' or 'sentinel bench quality'")
    options = parser.parse_args(arguments)
    try:
        print(store(options.source))
    except InputError as error:
        print(f"sentinel: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

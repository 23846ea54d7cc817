"""``sentinel recommend``: what to run here, chosen from measurements by a stated rule."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sentinel.commands.arguments import real_number, share

if TYPE_CHECKING:
    from sentinel.measure.results import Environment
    from sentinel.report.recommend import Recommendation

MEASURED = Path("report") / "results.json"  # where `sentinel report` writes when nothing else is said


def positive(text: str) -> float:
    """Argument type: a number above 0."""
    value = real_number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    needs = ("default", "latency", "quality", "memory")
    parser.add_argument("model", metavar="MODEL", help="a model that was measured")
    parser.add_argument("--for", dest="need", choices=needs, default="default", help="what matters (default: default)")
    parser.add_argument("--from", dest="source", metavar="FILE", help=f"results to choose from (default {MEASURED})")
    parser.add_argument(
        "--max-perplexity-increase", metavar="P", type=share,
        help="over the dense model's, as 10%% or 0.1 (5%% for default, 25%% for latency and memory)",
    )  # fmt: skip
    parser.add_argument("--max-memory", metavar="MB", type=positive, help="at its peak")
    parser.add_argument("--min-tokens-per-s", metavar="N", type=positive, help="new tokens, prefill included")
    parser.add_argument("--save", metavar="NAME", help="keep the choice for 'generate --preset NAME'")
    parser.add_argument("--json", metavar="FILE", help="write the choice and the frontier to FILE")


def run(options: argparse.Namespace) -> None:
    from sentinel.commands.presets import preset_file
    from sentinel.errors import InputError
    from sentinel.files import check_output_file, write_text
    from sentinel.measure.results import ResultSet
    from sentinel.report.recommend import Demand, recommend
    from sentinel.report.recommend_view import print_recommendation, recommendation_json
    from sentinel.report.store import with_stored

    if options.save:
        preset_file(options.save)  # refuses a bad name before anything else
    if options.json:
        check_output_file(options.json)
    if options.source is None and not MEASURED.exists():
        raise InputError(
            f"there are no measurements in {MEASURED}; run 'sentinel report' first, or name a file by --from"
        )
    results = with_stored(ResultSet.read(options.source or MEASURED))
    _tell_of_another_machine(results.environment)
    demand = Demand(options.need, options.max_perplexity_increase, options.max_memory, options.min_tokens_per_s)
    found = recommend(results, options.model, demand)
    if found.chosen is None:
        raise InputError(f"{found.reason[0].lower()}{found.reason[1:].rstrip('.')}")
    if options.json:
        write_text(options.json, recommendation_json(found, options.model))
    print_recommendation(found, results, options.model)
    if options.save:
        _save(options.save, found, options.model)


def _tell_of_another_machine(measured: Environment) -> None:
    from sentinel.measure.environment import cpu_name
    from sentinel.progress import say

    here = cpu_name()
    if measured.cpu != here:
        say(f"warning: measured on {measured.cpu}, but this is {here}; measure here with 'sentinel report'")


def _save(name: str, found: Recommendation, model: str) -> None:
    from sentinel.commands.presets import Preset, save_preset
    from sentinel.progress import say

    assert found.chosen is not None
    shape = found.chosen.shape
    preset = Preset(model, found.chosen.level, shape.precision, shape.heads / 100, shape.neurons / 100, found.reason)
    say(f"saved as {save_preset(name, preset)}; 'sentinel generate MODEL PROMPT --preset {name}' takes it")

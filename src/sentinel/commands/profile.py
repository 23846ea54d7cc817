"""``sentinel profile``: time and memory per component of one engine, as table, chart and Chrome trace."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from sentinel.commands.arguments import add_machine, add_model, whole_number
from sentinel.commands.engine import add_engine, open_engine

SCHEMA = "sentinel-profile/1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_engine(parser)
    count = whole_number(1)
    parser.add_argument("--prompt-tokens", metavar="N", type=count, default=64, help="default 64")
    parser.add_argument("--new-tokens", metavar="N", type=count, default=20, help="default 20")
    parser.add_argument("--rounds", metavar="N", type=count, default=5, help="profiled generations (default 5)")
    parser.add_argument("--trace", metavar="FILE", help="write a Chrome trace of the last generation to FILE.json")
    parser.add_argument("--chart", metavar="FILE", help="write a chart as .html or .svg")
    parser.add_argument("--json", metavar="FILE", help="write environment and profile to FILE")
    add_machine(parser)


def run(options: argparse.Namespace) -> None:
    import json
    from pathlib import Path

    from sentinel.api.measuring import profile_tokens
    from sentinel.files import check_output_file, write_text
    from sentinel.measure import environment
    from sentinel.measure.profiling.trace import chrome_trace
    from sentinel.report.charts import chart_text, check_chart_path
    from sentinel.report.profile_view import print_profile, profile_chart

    check_chart_path(options.chart)
    for path in (options.chart, options.trace, options.json):
        if path:
            check_output_file(path)
    opened = open_engine(options)
    found = profile_tokens(opened.engine, options.prompt_tokens, options.new_tokens, options.rounds)
    if options.trace:
        write_text(options.trace, chrome_trace(found))
    if options.chart:
        write_text(options.chart, chart_text(profile_chart(found, opened.name), Path(options.chart).suffix))
    if options.json:
        row = asdict(found)
        del row["steps"]  # a trace holds them
        row = {"model": opened.name, "weights": opened.weights, "heads_pruned": options.heads or 0.0, **row}
        place = environment.describe(options.device)
        body = {"schema": SCHEMA, "environment": asdict(place), "results": [row]}
        write_text(options.json, json.dumps(body, indent=1) + "\n")
    print_profile(found, opened.name, opened.weights)

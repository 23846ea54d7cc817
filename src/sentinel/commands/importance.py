"""``sentinel importance``: how much every head matters, as a table in the terminal and a chart."""

from __future__ import annotations

import argparse

from sentinel.commands.arguments import add_machine, add_model, load_model
from sentinel.commands.pruning import add_calibration, settings_of

SHADES = " ░▒▓█"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_calibration(parser)
    parser.add_argument("--chart", metavar="FILE", help="write the layer x head map as .html or .svg")
    parser.add_argument("--json", metavar="FILE", help="write the removal ranks to FILE")
    add_machine(parser)


def run(options: argparse.Namespace) -> None:
    import json
    from pathlib import Path

    from sentinel.api.changing import importance
    from sentinel.api.model import Model
    from sentinel.files import check_output_file, write_text
    from sentinel.report.charts import chart_text, check_chart_path
    from sentinel.report.head_map import head_map
    from sentinel.report.terminal import stdout_console

    for path in (options.chart, options.json):
        if path is not None:
            check_output_file(path)
    check_chart_path(options.chart)
    settings = settings_of(options, compensate=False)
    model = Model(load_model(options), options.model)
    order = importance(model, expand_kv=options.expand_kv, calibration=options.calibration, settings=settings)
    ranks = [[int(rank) for rank in layer] for layer in order.group_ranks]
    if options.json:
        body = {"model": model.name, "criterion": order.criterion, "removal_ranks": ranks}
        write_text(options.json, json.dumps(body, indent=1) + "\n")
    if options.chart:
        write_text(options.chart, chart_text(head_map(ranks), Path(options.chart).suffix))
    total = sum(len(layer) for layer in order.group_ranks)
    console = stdout_console()
    console.print(
        f"{model.name}: {total} head groups by {order.criterion}; dark ones are removed last, numbers are ranks"
    )
    for index, layer in enumerate(order.group_ranks):
        cells = " ".join(f"{SHADES[int(rank / total * len(SHADES))] * 2}{rank:>4}" for rank in layer)
        console.print(f"layer {index:>2}  {cells}", soft_wrap=True)

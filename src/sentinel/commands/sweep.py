"""``sentinel sweep``: quality over models x criteria x pruning ratios, on processes or on a Ray cluster."""

from __future__ import annotations

import argparse

from sentinel.adapt.pruning import criteria
from sentinel.commands.arguments import command_again, listed, names, telling_what_is_kept, whole_number
from sentinel.commands.pruning import DEFAULT_TEXT, ratios
from sentinel.errors import InputError
from sentinel.models.record import SELF

COMPENSATE = {"both": (False, True), "yes": (True,), "no": (False,)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--models", metavar="M,M", type=names, default=("smollm2-135m",), help="MODELs (default smollm2-135m)"
    )
    parser.add_argument("--criteria", metavar="C,C", type=names, default=criteria.ALL, help="criteria (default all)")
    parser.add_argument(
        "--heads", metavar="R,R", type=ratios, default=(0.3, 0.5, 0.7), help="ratios of heads (default 0.3,0.5,0.7)"
    )
    parser.add_argument(
        "--neurons", metavar="R,R", type=ratios, default=(0.0,), help="ratios of neurons, each with each of heads"
    )
    parser.add_argument("--compensate", choices=tuple(COMPENSATE), default="both", help="re-solve projections, or not")
    parser.add_argument(
        "--seeds", metavar="N,N", type=listed(whole_number(0)), default=(0,), help="of sampling (default 0)"
    )
    parser.add_argument("--expand-kv", action="store_true", help="repeat grouped K/V, so that every head stands alone")
    parser.add_argument("--calibration", metavar="TEXT", default=SELF, help="default: the model's own")
    parser.add_argument("--calibration-tokens", metavar="N", type=whole_number(1), default=24_576, help="default 24576")
    parser.add_argument("--text", metavar="TEXT", default=DEFAULT_TEXT, help="to judge by (default: test splits)")
    parser.add_argument(
        "--eval-tokens", metavar="N", type=whole_number(2), default=4096, help="per text (default 4096)"
    )
    parser.add_argument("--context", metavar="N", type=whole_number(2), default=512, help="tokens seen (default 512)")
    parser.add_argument(
        "--workers", metavar="N", type=whole_number(1), default=2,
        help="jobs at a time (default 2); each holds a model and several pruned ones in memory",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="torch device of every job (default cpu)")
    parser.add_argument("--backend", choices=("processes", "ray"), default="processes", help="where jobs run")
    parser.add_argument("--address", metavar="A", help="of a running Ray cluster, or auto (default: start one here)")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="results file, written after every job")
    parser.add_argument("--resume", action="store_true", help="go on with FILE: its jobs are not run again")


def run(options: argparse.Namespace) -> None:
    if options.address is not None and options.backend != "ray":
        raise InputError("--address is of a Ray cluster; give --backend ray as well")
    from pathlib import Path

    from sentinel.api.measuring import sweep
    from sentinel.cores import physical_cores
    from sentinel.measure.sweep import SweepSettings
    from sentinel.progress import say
    from sentinel.report.terminal import print_tables

    settings = SweepSettings(
        heads=options.heads,
        neurons=options.neurons,
        compensate=COMPENSATE[options.compensate],
        expand_kv=options.expand_kv,
        calibration=options.calibration,
        calibration_tokens=options.calibration_tokens,
        text=options.text,
        eval_tokens=options.eval_tokens,
        context=options.context,
        device=options.device,
    )
    if options.backend == "processes" and options.workers > physical_cores():
        say(f"warning: {options.workers} workers on {physical_cores()} cores will be slower than {physical_cores()}")
    file = Path(options.output)

    def what_is_kept() -> str:
        if not file.exists():
            return "no job is done yet"
        return f"the jobs that are done are in {file}; go on with: {command_again(options, '--resume')}"

    with telling_what_is_kept(what_is_kept):
        found = sweep(
            options.models,
            file,
            settings,
            criteria=options.criteria,
            seeds=options.seeds,
            workers=options.workers,
            backend=options.backend,
            address=options.address,
            resume=options.resume,
        )
    if found.rows:
        print_tables(found.rows)
    if found.failures:
        raise InputError(found.failures)

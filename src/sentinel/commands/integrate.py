"""``sentinel integrate``: give a model U-Net skips and baseline integration, as an exact identity to be trained."""

from __future__ import annotations

import argparse
from pathlib import Path

from sentinel.commands.arguments import add_model, add_output, check_model_output, load_model
from sentinel.errors import InputError

NAMES = ("original", "all", "no-baseline", "no-unet", "minimal")


def rank(text: str) -> int | None:
    """Argument type: the rank of the fusions, None for "full"."""
    if text == "full":
        return None
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rank; give a whole number of at least 1, or full")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_output(parser)
    parser.add_argument(
        "--configuration", choices=NAMES, default="all",
        help="all (default): skips and baseline; no-baseline: skips; no-unet: baseline; "
        "minimal: neither; original: neither, to be run head by head",
    )  # fmt: skip
    parser.add_argument("--rank", metavar="N", type=rank, default=16, help="of the fusions, or full (default 16)")
    parser.add_argument("--baseline", metavar="MODEL", help="the unpruned model (default: MODEL as it is now)")


def run(options: argparse.Namespace) -> None:
    from sentinel.adapt.integration import configuration_of
    from sentinel.api.changing import integrate
    from sentinel.api.model import Model, load
    from sentinel.files import written_size

    wanted = configuration_of(options.configuration)
    if options.baseline is not None and not wanted.baseline:
        raise InputError(f"configuration {wanted.name} has no baseline; leave out --baseline")
    check_model_output(options.output, options.force, options.model, options.baseline)
    model = Model(load_model(options), options.model)
    baseline = None
    if options.baseline is not None:
        baseline = load(options.baseline, random_weights=options.random_weights)
    made = integrate(model, wanted.name, rank=options.rank, baseline=baseline)
    made.save(options.output, force=options.force)
    spec = made.spec
    before = spec.parameter_count(baseline=False) - spec.fusion_weights
    frozen = spec.parameter_count() - spec.parameter_count(baseline=False)
    size = written_size(Path(options.output)) / 1e6
    print(f"{options.output}: {wanted.name}, {wanted.description}")
    print(
        f"{before:,} parameters and {spec.fusion_weights:,} new ones (+{spec.fusion_weights / before:.2%})"
        + (f", {frozen:,} frozen ones of the baseline" if frozen else "")
        + f"; {size:,.1f} MB"
    )
    if wanted.head_by_head:
        print(f"run it head by head with: sentinel generate {options.output} PROMPT --level 0")

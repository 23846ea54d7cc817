"""``sentinel quantize``: write a checkpoint that level 3 runs without torch."""

from __future__ import annotations

import argparse

from sentinel.commands.arguments import (
    add_dtype,
    add_model,
    add_output,
    check_model_output,
    whole_number,
)
from sentinel.commands.pruning import ratio
from sentinel.errors import InputError
from sentinel.models.record import SELF

DEFAULT_TOKENS = 16_384  # as `sentinel.quantize`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_output(parser)
    parser.add_argument("--precision", choices=("int8", "int4"), default="int8", help="default int8")
    add_dtype(parser, "auto")
    parser.add_argument(
        "--heads",
        metavar="R",
        type=ratio,
        default=0.0,
        help="only this stored level of an elastic model (default: all of them, to be chosen when it is run)",
    )
    parser.add_argument("--neurons", metavar="R", type=ratio, default=0.0, help="likewise")
    texts = parser.add_mutually_exclusive_group()
    texts.add_argument(
        "--calibration",
        metavar="TEXT",
        help="of int4: self (default: text that the model writes itself), text files, folders or built-in texts, with "
        "commas between; rounding errors are made up for on it (GPTQ, damping 1 %% of the mean diagonal)",
    )
    texts.add_argument("--no-calibration", action="store_true", help="of int4: round each weight for itself")
    parser.add_argument(
        "--calibration-tokens", metavar="N", type=whole_number(1), help=f"of int4: default {DEFAULT_TOKENS}"
    )


def run(options: argparse.Namespace) -> None:
    from sentinel.api.changing import quantize
    from sentinel.formats.sources import open_stored

    if options.precision == "int8" and (options.calibration or options.calibration_tokens or options.no_calibration):
        raise InputError("int8 needs no calibration; leave the calibration options out, or ask for --precision int4")
    check_model_output(options.output, options.force, options.model)
    model = open_stored(options.model, random_weights=options.random_weights, dtype=options.dtype or "auto")
    made = quantize(
        model,
        options.precision,
        heads=options.heads,
        neurons=options.neurons,
        calibration=None if options.no_calibration else options.calibration or SELF,
        calibration_tokens=options.calibration_tokens or DEFAULT_TOKENS,
    )
    made.save(options.output, force=options.force)
    assert made.quantised is not None
    widths, size = made.quantised.widths, made.quantised.native.n_byte / 1e6
    stored = f", {len(widths)} stored widths" if widths else ""
    before = model.spec.parameter_count() * 4 / 1e6
    print(f"{options.output}: {size:,.1f} MB in {options.precision}{stored}, {before:,.1f} MB in fp32")

"""``sentinel export``: write a model for the runtimes of others."""

from __future__ import annotations

import argparse

from sentinel.commands.arguments import add_force, add_model, load_model
from sentinel.commands.pruning import ratio
from sentinel.formats.exports import EXPORT_FORMATS, export_format


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "-o", "--output", metavar="PATH", required=True, help="folder to write; of gguf a file, PATH.gguf"
    )
    add_force(parser)
    parser.add_argument("--format", choices=tuple(EXPORT_FORMATS), default="hugging-face", help="default hugging-face")
    precisions = "; ".join(f"of {name} {', '.join(found.precisions)}" for name, found in EXPORT_FORMATS.items())
    parser.add_argument("--precision", metavar="P", help=f"{precisions} (default: the first)")
    parser.add_argument(
        "--heads",
        metavar="R",
        type=ratio,
        default=0.0,
        help="this stored width of an elastic model (default: the whole)",
    )
    parser.add_argument("--neurons", metavar="R", type=ratio, default=0.0, help="likewise")


def run(options: argparse.Namespace) -> None:
    from sentinel.api.exporting import check_export_path, export
    from sentinel.api.model import Model

    wanted = export_format(options.format)
    wanted.precision_of(options.precision)
    check_export_path(options.output, wanted, options.force, options.model)
    wanted.load_writer()
    model = Model(load_model(options, "auto"), options.model)
    made = export(
        model,
        options.output,
        options.format,
        heads=options.heads,
        neurons=options.neurons,
        precision=options.precision,
        force=options.force,
    )
    print(f"{made.path}: {made.n_byte / 1e6:,.1f} MB, {made.format} in {made.precision}. To run it:")
    print(made.usage)

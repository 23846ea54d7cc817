"""``sentinel quantize``: write a checkpoint that level 3 runs without torch."""

from __future__ import annotations

import argparse

from sentinel.commands.arguments import add_model, load_model, set_pruning_level
from sentinel.commands.pruning import ratio


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="folder to write")
    parser.add_argument("--precision", choices=("int8", "int4"), default="int8", help="default int8")
    parser.add_argument(
        "--heads", metavar="R", type=ratio, default=0.0, help="stored pruning level of an elastic model"
    )
    parser.add_argument("--neurons", metavar="R", type=ratio, default=0.0, help="likewise")


def run(options: argparse.Namespace) -> None:
    from sentinel.files import check_output_folder
    from sentinel.infer.cpu_engine import pack, save_quantised
    from sentinel.models.elastic import at_current_level
    from sentinel.models.folder import is_checkpoint
    from sentinel.progress import working

    check_output_folder(options.output, is_checkpoint)
    loaded = load_model(options)
    set_pruning_level(loaded.decoder, options.heads, options.neurons)
    with working(f"Quantising {loaded.name} to {options.precision}"):
        weights = pack(at_current_level(loaded.decoder), options.precision)
    save_quantised(weights, options.output, loaded.tokenizer, loaded.name)
    before = loaded.spec.parameter_count() * 4
    print(f"{options.output}: {weights.n_byte / 1e6:,.1f} MB in {options.precision}, {before / 1e6:,.1f} MB in fp32")

"""``sentinel info``: what a model is made of, what one token costs, what is stored, and how it was made."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from sentinel.commands.arguments import add_dtype, add_model

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from sentinel.infer.model_info import ModelInfo
    from sentinel.models.spec import LayerSpec, ModelSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_dtype(parser, "fp32")
    parser.add_argument("--json", metavar="FILE", help="write the specification, the sizes and the record to FILE")


def run(options: argparse.Namespace) -> None:
    from sentinel.files import check_output_file, write_text
    from sentinel.infer.model_info import model_info
    from sentinel.report.terminal import stdout_console

    if options.json is not None:
        check_output_file(options.json)
    info = model_info(options.model, random_weights=options.random_weights, dtype=options.dtype)
    if options.json is not None:
        write_text(options.json, json.dumps(info.to_dict(), indent=1) + "\n")
    output = stdout_console()
    output.soft_wrap = True
    _print_sizes(output, info)
    _print_stored(output, info)
    _print_layers(output, info.spec)
    _print_record(output, info)


def _print_sizes(output: Console, info: ModelInfo) -> None:
    from rich.table import Table

    from sentinel.models.features import features

    spec = info.spec
    output.print(f"[bold]{info.name}[/bold]: {spec.family}, {info.record.weights} weights, {info.precision}")
    if info.description:
        output.print(info.description, markup=False)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("parameters", f"{spec.parameter_count():,} and {spec.n_head_total:,} head gates")
    _add_integration(table, spec)
    table.add_row("width, vocabulary, context", f"{spec.n_embd:,}, {spec.vocab_size:,}, {spec.max_seq_len:,}")
    table.add_row("features", ", ".join(sorted(features(spec))))
    beside = ", stored ratios included" if info.stored else ""
    table.add_row("weights in memory", f"{info.memory_bytes / 1e6:,.1f} MB in {info.precision}{beside}")
    if info.disk_bytes is not None:
        table.add_row("weights on disk", f"{info.disk_bytes / 1e6:,.1f} MB")
    table.add_row(
        "read per token",
        f"{info.weight_bytes_per_token / 1e6:,.1f} MB of weights in {info.precision}, and "
        f"{info.kv_bytes_per_position / 1e3:,.1f} kB per cached position",
    )
    table.add_row("KV cache", f"{info.kv_bytes / 1e6:,.1f} MB for {spec.max_seq_len:,} tokens{_of_windows(spec)}")
    table.add_row("FLOPs per token", f"{spec.flops_per_token(64) / 1e6:,.1f} million at 64 positions")
    output.print(table)


def _of_windows(spec: ModelSpec) -> str:
    """What bounds the KV cache, if anything does."""
    if not spec.windows:
        return ""
    bounded = sum(layer.attention.window is not None for layer in spec.layers)
    sizes = " or ".join(f"{window:,}" for window in spec.windows)
    return f"; {bounded} of {spec.n_layer} layers look back {sizes} tokens and keep little more"


def _add_integration(table: Table, spec: ModelSpec) -> None:
    """A row for skips and baseline, if there are any."""
    integration = spec.integration
    if integration is None:
        return
    features = ["U-Net skips"] if integration.skips else []
    features += ["baseline integration"] if integration.baseline is not None else []
    rank = "full rank" if integration.rank is None else f"rank {integration.rank}"
    frozen = spec.parameter_count() - spec.parameter_count(baseline=False)
    kept = f", and {frozen:,} frozen ones of the baseline" if frozen else ""
    table.add_row(" and ".join(features), f"{spec.fusion_weights:,} of the parameters, {rank}{kept}")


def _print_stored(output: Console, info: ModelInfo) -> None:
    """The pruning ratios that the model stores, with what each takes and what a token then reads."""
    from rich.table import Table

    if not info.stored:
        return
    table = Table("stored ratio", "own weights", "read per token", box=None, padding=(0, 2, 0, 0))
    table.add_row("nothing removed", "", f"{info.weight_bytes_per_token / 1e6:,.1f} MB")
    for ratio in info.stored:
        removed = f"{ratio.heads:.0%} of heads, {ratio.neurons:.0%} of neurons"
        table.add_row(removed, f"{ratio.n_byte / 1e6:,.1f} MB", f"{ratio.weight_bytes_per_token / 1e6:,.1f} MB")
    output.print()
    output.print(table)


def _print_layers(output: Console, spec: ModelSpec) -> None:
    """Sizes of the layers; those that are alike and follow each other in one row."""
    from rich.table import Table

    layers = Table("layers", "heads", "KV heads", "head_dim", "neurons", box=None, padding=(0, 2, 0, 0))
    first = 0
    for index, layer in enumerate(spec.layers):
        sizes = _sizes(layer)
        if index + 1 == spec.n_layer or _sizes(spec.layers[index + 1]) != sizes:
            span = str(index) if first == index else f"{first}–{index}"
            layers.add_row(span, *(f"{size:,}" for size in sizes))
            first = index + 1
    output.print()
    output.print(layers)


def _sizes(layer: LayerSpec) -> tuple[int, int, int, int]:
    return layer.n_head, layer.n_kv_head, layer.head_dim, layer.intermediate_size


def _print_record(output: Console, info: ModelInfo) -> None:
    """How the model was made, one line a step."""
    if info.record.steps:
        output.print("\nhow it was made")
        for number, step in enumerate(info.record.steps, 1):
            output.print(f"{number}. {step.describe()}", markup=False)

"""``sentinel info``: what a model is made of, and what one token costs."""

from __future__ import annotations

import argparse
import json

from sentinel.commands.arguments import add_model, load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--json", metavar="FILE", help="write the specification and the sizes to FILE")


def run(options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    from sentinel.files import check_output_file, write_text

    if options.json is not None:
        check_output_file(options.json)
    loaded = load_model(options)
    spec, integration = loaded.spec, loaded.spec.integration
    facts = {
        "parameters": spec.parameter_count(),
        "fusion_parameters": spec.fusion_weights,
        "frozen_parameters": spec.parameter_count() - spec.parameter_count(baseline=False),
        "gates": spec.n_head_total,
        "weight_bytes": spec.parameter_count() * 4,
        "weight_bytes_per_token": spec.weight_bytes_per_token(),
        "kv_bytes_per_position": spec.kv_bytes_per_position(),
        "flops_per_token_at_64": spec.flops_per_token(64),
    }
    output = Console(highlight=False)
    output.print(f"[bold]{loaded.name}[/bold]: {spec.family}, {loaded.weights} weights")
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("parameters", f"{facts['parameters']:,} and {facts['gates']:,} head gates")
    if integration is not None:
        features = ["U-Net skips"] if integration.skips else []
        features += ["baseline integration"] if integration.baseline is not None else []
        rank = "full rank" if integration.rank is None else f"rank {integration.rank}"
        frozen = facts["frozen_parameters"]
        kept = f", and {frozen:,} frozen ones of the baseline" if frozen else ""
        table.add_row(" and ".join(features), f"{facts['fusion_parameters']:,} of the parameters, {rank}{kept}")
    table.add_row("width, vocabulary, context", f"{spec.n_embd:,}, {spec.vocab_size:,}, {spec.max_seq_len:,}")
    table.add_row("norm, positions", f"{spec.norm}, {spec.positions}")
    table.add_row("MLP", f"{spec.activation}{', gated' if spec.gated_mlp else ''}")
    table.add_row("weights in fp32", f"{facts['weight_bytes'] / 1e6:,.1f} MB")
    table.add_row(
        "read per token",
        f"{facts['weight_bytes_per_token'] / 1e6:,.1f} MB of weights in fp32, and "
        f"{facts['kv_bytes_per_position'] / 1e3:,.1f} kB per cached position",
    )
    table.add_row("FLOPs per token", f"{facts['flops_per_token_at_64'] / 1e6:,.1f} million at 64 positions")
    output.print(table)
    output.print()
    layers = Table("layers", "heads", "KV heads", "head_dim", "neurons", box=None, padding=(0, 2, 0, 0))
    first = 0
    for index, layer in enumerate(spec.layers):
        if index + 1 == spec.n_layer or spec.layers[index + 1] != layer:
            span = str(index) if first == index else f"{first}–{index}"
            sizes = (layer.n_head, layer.n_kv_head, layer.head_dim, layer.intermediate_size)
            layers.add_row(span, *(f"{size:,}" for size in sizes))
            first = index + 1
    output.print(layers)
    if options.json is not None:
        body = {"model": loaded.name, "weights": loaded.weights, **facts, "spec": spec.to_dict()}
        write_text(options.json, json.dumps(body, indent=1) + "\n")

"""``sentinel prune``: remove heads and neurons, re-solve what is left, and write a smaller model."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentinel.commands.arguments import (
    add_machine,
    add_model,
    add_output,
    check_model_output,
    command_again,
    load_model,
    real_number,
    telling_what_is_kept,
    whole_number,
)
from sentinel.commands.pruning import (
    KINDS,
    add_calibration,
    not_smaller,
    ratio,
    ratios,
    settings_of,
)

if TYPE_CHECKING:
    from rich.console import Console

    from sentinel.adapt.pruning.prune import PruningSettings
    from sentinel.api.model import Model
    from sentinel.models.decoder import Decoder

COLUMNS = [
    "model",
    "heads",
    "neurons",
    "parameters",
    "weights MB",
    "read per token MB",
    "KV kB per token",
    "perplexity",
    "over dense",
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_output(parser)
    parser.add_argument("--heads", metavar="R", type=ratio, default=0.0, help="ratio of heads to remove")
    parser.add_argument("--neurons", metavar="R", type=ratio, default=0.0, help="ratio of MLP neurons to remove")
    parser.add_argument(
        "--speedup", metavar="X", type=real_number, help="instead: X times the tokens/s, as measured here at level 3"
    )
    parser.add_argument(
        "--speedup-precision", choices=("int8", "int4", "fp32"), default="int8",
        help="that --speedup is measured in (default int8; fp32 is level 2)",
    )  # fmt: skip
    parser.add_argument("--max-memory", metavar="MB", type=real_number, help="instead: weights of at most MB in fp32")
    parser.add_argument(
        "--max-ram", metavar="MB", type=real_number,
        help="prune layer by layer, in at most MB of memory: the model is never whole in it",
    )  # fmt: skip
    parser.add_argument("--elastic", metavar="R,R", type=ratios, help="instead: one model with these ratios as levels")
    compensation = parser.add_mutually_exclusive_group()
    compensation.add_argument("--compensate", action="store_true", default=True, help="re-solve projections (default)")
    compensation.add_argument("--no-compensate", dest="compensate", action="store_false", help="only remove")
    add_calibration(parser)
    parser.add_argument(
        "--text",
        default=KINDS,
        metavar="TEXT",
        help=f"text to judge by (default {KINDS}: kinds that nothing learns from)",
    )
    parser.add_argument(
        "--eval-tokens", metavar="N", type=whole_number(2), default=28_672, help="default 28672, over all texts"
    )
    add_machine(parser)


def run(options: argparse.Namespace) -> None:
    from sentinel.api.changing import check_targets, prune
    from sentinel.api.model import Model

    check_targets(options.heads, options.neurons, options.elastic, options.speedup, options.max_memory)
    output = check_model_output(options.output, options.force, options.model)
    settings = settings_of(options, compensate=options.compensate)
    if options.max_ram is not None:
        _run_by_layers(options, settings)
        return
    model = Model(load_model(options), options.model)

    def what_is_kept() -> str:
        if options.statistics is None or not Path(options.statistics).exists():
            return "nothing is kept; --statistics FILE keeps the calibration"
        return f"the calibration so far is in {options.statistics}; the same command goes on: {command_again(options)}"

    with telling_what_is_kept(what_is_kept):
        made = prune(
            model,
            heads=options.heads,
            neurons=options.neurons,
            elastic=options.elastic,
            speedup=options.speedup,
            speedup_precision=options.speedup_precision,
            max_memory=options.max_memory,
            expand_kv=options.expand_kv,
            calibration=options.calibration,
            judged_by=options.text,
            settings=settings,
        )
    made.save(output, force=options.force)
    with telling_what_is_kept(lambda: f"the pruned model is in {output}; judge it with: sentinel evaluate {output}"):
        _print_table(options, model, made)


def _run_by_layers(options: argparse.Namespace, settings: PruningSettings) -> None:
    import torch

    from sentinel.api.by_layers import prune_by_layers
    from sentinel.errors import InputError
    from sentinel.formats.sources import open_stored

    if options.elastic or options.speedup or options.max_memory or options.expand_kv or options.statistics:
        raise InputError(
            "--max-ram takes --heads and --neurons alone; leave the other targets, --expand-kv and --statistics"
        )
    if options.device != "cpu" or settings.floor_groups or settings.floor_neurons:
        raise InputError(
            "--max-ram is for the CPU and knows no floors; leave out --device, --floor-heads, --floor-neurons"
        )
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    made = prune_by_layers(
        open_stored(options.model, random_weights=options.random_weights, dtype="fp32"),
        options.output,
        heads=options.heads,
        neurons=options.neurons,
        max_ram=options.max_ram,
        calibration=options.calibration,
        settings=settings,
        force=options.force,
    )
    print(
        f"{options.output}: {made.spec.parameter_count():,} parameters in {made.seconds:,.0f} s; "
        f"memory {made.peak_mb:,.0f} MB, predicted {made.predicted_mb:,.0f} MB"
    )


def _print_table(options: argparse.Namespace, before: Model, made: Model) -> None:
    """The model as loaded and the pruned one at each stored width, with a line on each that is not smaller."""
    from sentinel.adapt.text.corpora import load_texts
    from sentinel.adapt.text.kinds import Seen
    from sentinel.measure.judge import Judge
    from sentinel.report.terminal import print_table, stdout_console

    judge = None
    if before.weights == "real":
        texts = load_texts(options.text, "test")
        each = -(-options.eval_tokens // len(texts))
        judge = Judge(before.decoder, before.require_tokenizer(), texts, before.record, tokens_per_text=each)
    rows = [_row("as loaded", before.decoder, None, None if judge is None else judge(before.decoder))]
    remarks: list[str] = []
    by_width: dict[str, dict[str, Any]] = {}
    for shares, decoder in _widths(made):
        judged = None if judge is None else judge(decoder, Seen.of(made.record))
        rows.append(_row("pruned", decoder, shares, judged))
        if judged is not None:
            by_width[f"-{shares[0]:.0%} heads, -{shares[1]:.0%} neurons"] = judged
        said = not_smaller(before.spec, decoder.spec, before.name, expanded=options.expand_kv)
        if said is not None:
            remarks.append(f"Without {shares[0]:.0%} of heads: {said}" if options.elastic else said)
    console = stdout_console()
    print_table(console, COLUMNS, rows)
    if judge is not None:
        unseen = any(judged["seen_kind"] is not True for judged in by_width.values())
        console.print(
            f"Perplexity on {', '.join(text.label for text in judge.texts)}, {judge.tokens:,} tokens, context "
            f"{judge.context}; the ratio is the geometric mean over the kinds that {'no step' if unseen else 'a step'} has "
            "seen, with the standard error of paired differences.",
            style="dim",
        )
        _print_kinds(console, by_width)
    for remark in remarks:
        console.print(remark, markup=False, soft_wrap=True)
    print(Path(options.output))


def _print_kinds(console: Console, by_width: dict[str, dict[str, Any]]) -> None:
    """Perplexity over dense of each width on each kind of text, and the geometric means."""
    from sentinel.report.cells import times
    from sentinel.report.terminal import print_table

    found = list(by_width.values())
    rows = [
        [
            f"{kind}{' (seen)' if one['seen_kind'] else ''}",
            *(times(f["by_kind"][kind]["perplexity_ratio"]) for f in found),
        ]
        for kind, one in found[0]["by_kind"].items()
    ]
    rows.append(["geometric mean", *(times(one["perplexity_ratio"]) for one in found)])
    print_table(console, ["perplexity over dense", *by_width], rows)


def _widths(made: Model) -> Iterator[tuple[tuple[float, float], Decoder]]:
    """Shares of heads and neurons that were removed, and a decoder without them, for each stored width."""
    from sentinel.models.record import Pruned

    step = made.record.steps[-1]
    assert isinstance(step, Pruned)
    for shares in zip(step.heads, step.neurons, strict=True):
        yield shares, made.decoder.at_width(*shares) if step.elastic else made.decoder


def _row(label: str, model: Decoder, shares: tuple[float, float] | None, fields: dict[str, Any] | None) -> list[str]:
    from sentinel.measure.results import Result
    from sentinel.report.cells import over_dense, perplexity

    judged = ["random weights", "–"]
    if fields is not None:
        found = Result(suite="prune", model=label, weights="real", engine=label, **fields)
        judged = [perplexity(found), over_dense(found)]
    spec = model.spec
    heads, neurons = spec.n_head_total, sum(layer.intermediate_size for layer in spec.layers)
    share = ("", "") if shares is None else (f" (-{shares[0]:.0%})", f" (-{shares[1]:.0%})")
    return [
        label,
        f"{heads:,}{share[0]}",
        f"{neurons:,}{share[1]}",
        f"{spec.parameter_count():,}",
        f"{spec.parameter_count() * 4 / 1e6:,.1f}",
        f"{spec.weight_bytes_per_token() / 1e6:,.1f}",
        f"{spec.kv_bytes_per_position() / 1e3:,.1f}",
        *judged,
    ]

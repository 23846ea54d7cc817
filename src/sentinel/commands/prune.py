"""``sentinel prune``: remove heads and neurons, re-solve what is left, and write a smaller model."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

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
    DEFAULT_TEXT,
    add_calibration,
    make_pruner,
    not_smaller,
    prepared,
    ratio,
    ratios,
    settings_of,
)
from sentinel.errors import InputError

if TYPE_CHECKING:
    from sentinel.adapt.corpora import Text
    from sentinel.adapt.plan import PruningPlan, RemovalOrder
    from sentinel.adapt.prune import Pruner
    from sentinel.measure.judge import Judge
    from sentinel.models.decoder import Decoder
    from sentinel.models.sources import LoadedModel

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
MOST_HEADS, MOST_NEURONS = 0.7, 0.5  # how far a target may go: beyond, little is left of a model without training


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_output(parser)
    parser.add_argument("--heads", metavar="R", type=ratio, default=0.0, help="ratio of heads to remove")
    parser.add_argument("--neurons", metavar="R", type=ratio, default=0.0, help="ratio of MLP neurons to remove")
    parser.add_argument(
        "--speedup", metavar="X", type=real_number, help="instead: be X times as fast (level 1, measured)"
    )
    parser.add_argument("--max-memory", metavar="MB", type=real_number, help="instead: weights of at most MB in fp32")
    parser.add_argument("--elastic", metavar="R,R", type=ratios, help="instead: one model with these ratios as levels")
    compensation = parser.add_mutually_exclusive_group()
    compensation.add_argument("--compensate", action="store_true", default=True, help="re-solve projections (default)")
    compensation.add_argument("--no-compensate", dest="compensate", action="store_false", help="only remove")
    add_calibration(parser)
    parser.add_argument("--text", default=DEFAULT_TEXT, metavar="TEXT", help="text to judge by (default: test splits)")
    parser.add_argument("--eval-tokens", metavar="N", type=whole_number(2), default=8192, help="default 8192")
    add_machine(parser)


def run(options: argparse.Namespace) -> None:
    from sentinel.adapt.corpora import load_texts, refuse_seen_text
    from sentinel.adapt.prune import make_elastic
    from sentinel.models.checkpoint import save_checkpoint

    targets = [options.speedup, options.max_memory, options.elastic]
    if sum(target is not None for target in targets) + bool(options.heads or options.neurons) != 1:
        raise InputError("say what to remove by one of: --heads and --neurons, --speedup, --max-memory, --elastic")
    check_model_output(options.output, options.force, options.model)
    settings = settings_of(options, compensate=options.compensate)
    loaded = load_model(options)
    texts = load_texts(options.text, "test") if loaded.weights == "real" else []
    refuse_seen_text(loaded.record, texts)
    if texts:
        loaded.require_tokenizer()  # refused now, not when the result is to be judged
    dense = prepared(loaded, options)
    pruner = make_pruner(loaded, dense, settings, options.calibration, texts)

    def what_is_kept() -> str:
        if options.statistics is None or not Path(options.statistics).exists():
            return "nothing is kept; --statistics FILE keeps the calibration"
        return f"the calibration so far is in {options.statistics}; the same command goes on: {command_again(options)}"

    with telling_what_is_kept(what_is_kept):
        order, plans = _plans(options, pruner, loaded, dense)
    models = pruner.apply(plans)
    made = make_elastic(dense, order, plans, models) if options.elastic else models[0]
    step = pruner.step(
        loaded.name,
        order,
        plans,
        texts=options.calibration,
        elastic=options.elastic is not None,
        expanded_kv=dense is not loaded.decoder,
    )
    save_checkpoint(made, options.output, loaded.tokenizer, loaded.record.then(step), force=options.force)
    _print_table(options, loaded, plans, models, texts)


def _plans(
    options: argparse.Namespace, pruner: Pruner, loaded: LoadedModel, dense: Decoder
) -> tuple[RemovalOrder, list[PruningPlan]]:
    """The removal order of ``dense``, and what to keep; targets are told against the model as loaded."""
    from sentinel.adapt.plan import fit_target
    from sentinel.adapt.prune import scores_neurons

    if options.elastic:
        order = pruner.order(max(options.elastic), 0.0)
        return order, [order.plan(r) for r in sorted(set(options.elastic)) if r > 0]
    if options.speedup is None and options.max_memory is None:
        order = pruner.order(options.heads, options.neurons)
        return order, [order.plan(options.heads, options.neurons)]
    most_neurons = MOST_NEURONS if scores_neurons(options.criterion) else 0.0
    if options.speedup is not None:
        if options.speedup <= 1:
            raise InputError(f"--speedup must be above 1, not {options.speedup:g}")
        from sentinel.measure.latency import measure_latencies

        table = measure_latencies(dense)
        whole = table if dense is loaded.decoder else measure_latencies(loaded.decoder)
        order = pruner.order(MOST_HEADS, most_neurons)
        limit = whole.dense_ms / options.speedup
        return order, [fit_target(order, table.predict, limit, MOST_HEADS, most_neurons)]
    size = loaded.spec.parameter_count() * 4 / 1e6
    if options.max_memory >= size:
        raise InputError(f"--max-memory {options.max_memory:g} is not below the {size:,.1f} MB of {loaded.name}")
    # Compensation adds the biases.
    spec = dataclasses.replace(dense.spec, out_bias=True, down_bias=True) if options.compensate else dense.spec
    order = pruner.order(MOST_HEADS, most_neurons)

    def megabytes(plan: PruningPlan) -> float:
        return spec.with_counts(plan.group_counts, plan.neuron_counts).parameter_count() * 4 / 1e6

    return order, [fit_target(order, megabytes, options.max_memory, MOST_HEADS, most_neurons)]


def _print_table(
    options: argparse.Namespace,
    loaded: LoadedModel,
    plans: list[PruningPlan],
    models: list[Decoder],
    texts: list[Text],
) -> None:
    """The model as loaded and the pruned ones, with a line on each that is not smaller."""
    from sentinel.measure.judge import Judge
    from sentinel.report.terminal import print_table, stdout_console

    judge = None
    if texts:
        each = -(-options.eval_tokens // len(texts))
        judge = Judge(loaded.decoder, loaded.require_tokenizer(), texts, loaded.record, tokens_per_text=each)
    rows = [_row("as loaded", loaded.decoder, None, judge)]
    rows += [_row("pruned", model, plan, judge) for plan, model in zip(plans, models, strict=True)]
    console = stdout_console()
    print_table(console, COLUMNS, rows)
    if judge is not None:
        labels = ", ".join(text.label for text in texts)
        console.print(
            f"Perplexity on {labels}, {judge.tokens:,} tokens, context {judge.context}; the ratio is the mean over texts, "
            "with the standard error of paired differences.",
            style="dim",
        )
    for plan, model in zip(plans, models, strict=True):
        said = not_smaller(loaded.spec, model.spec, loaded.name, expanded=options.expand_kv)
        if said is not None:
            level = f"Without {plan.heads:.0%} of heads: " if len(plans) > 1 else ""
            console.print(f"{level}{said}", markup=False, soft_wrap=True)
    print(Path(options.output))


def _row(label: str, model: Decoder, plan: PruningPlan | None, judge: Judge | None) -> list[str]:
    from sentinel.measure.results import Result
    from sentinel.report.cells import over_dense, perplexity

    judged = ["random weights", "–"]
    if judge is not None:
        found = Result(suite="prune", model=label, weights="real", engine=label, **judge(model))
        judged = [perplexity(found), over_dense(found)]
    spec = model.spec
    heads, neurons = spec.n_head_total, sum(layer.intermediate_size for layer in spec.layers)
    share = ("", "") if plan is None else (f" (-{plan.heads:.0%})", f" (-{plan.neurons:.0%})")
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

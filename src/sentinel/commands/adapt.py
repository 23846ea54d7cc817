"""``sentinel adapt``: prune, measure, regrow and learn in cycles, down to a budget of size, time or heads."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from sentinel.commands.arguments import (
    add_force,
    add_model,
    check_model_output,
    command_again,
    listed,
    load_model,
    real_number,
    telling_what_is_kept,
    whole_number,
)
from sentinel.commands.pruning import DEFAULT_TEXT, not_smaller, prepared, ratio
from sentinel.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from sentinel.adapt.adaptation import Adaptation
    from sentinel.adapt.budget import Budget, CostTable, Unit
    from sentinel.adapt.controller import Controller, ControllerSettings
    from sentinel.models.decoder import Decoder
    from sentinel.models.record import Adapted
    from sentinel.models.sources import LoadedModel

MINUTES = 30.0
TRAIN_LENGTH = 256  # tokens of a training window; pruning and held-out text take twice as many


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="folder to write")
    parser.add_argument(
        "--budget", metavar="B", required=True,
        help="fp32 weights (400MB), speed-up at level 1 as measured here (1.3x), or share of heads that stay (0.5)",
    )  # fmt: skip
    parser.add_argument(
        "--text", metavar="TEXT", default=DEFAULT_TEXT,
        help=f"to learn from: files, folders or built-in texts, with commas between (default {DEFAULT_TEXT})",
    )  # fmt: skip
    parser.add_argument(
        "--held-out", metavar="TEXT", help="that decides when to stop (default: valid splits, or a part)"
    )
    parser.add_argument("--cycles", metavar="N", type=whole_number(1), help="at most (default 3)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", metavar="N", type=real_number, help=f"of learning in all (default {MINUTES:g})")
    length.add_argument("--steps", metavar="N", type=whole_number(1), help="instead: updates in every cycle")
    parser.add_argument("--overshoot", metavar="R", type=ratio, help="pruned below the budget (default 0.05)")
    parser.add_argument("--warm-up", metavar="N", type=whole_number(0), help="updates until a regrown gate is open")
    parser.add_argument(
        "--boost", metavar="X", type=real_number, help="learning rate of regrown heads (default 3 times)"
    )
    parser.add_argument("--patience", metavar="N", type=whole_number(1), help="cycles without gain before it ends")
    parser.add_argument("--train", metavar="WHAT", help="biases, gates, projections or all (default), as in recover")
    parser.add_argument("--batch", metavar="N", type=whole_number(1), help="windows at once")
    parser.add_argument("--learning-rate", metavar="X", type=real_number, help="highest one of a cycle")
    parser.add_argument("--tokens", metavar="N", type=whole_number(1), default=524_288, help="of text (default 524288)")
    parser.add_argument("--held-out-tokens", metavar="N", type=whole_number(1), default=8192, help="default 8192")
    parser.add_argument("--calibration-tokens", metavar="N", type=whole_number(1), default=24_576, help="default 24576")
    parser.add_argument("--floor-heads", metavar="N", type=whole_number(0), default=0, help="that every layer keeps")
    parser.add_argument("--expand-kv", action="store_true", help="repeat grouped K/V, so that every head stands alone")
    parser.add_argument(
        "--seed", metavar="N", type=whole_number(0), default=0, help="of sampling and order (default 0)"
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    add_force(again)
    parser.add_argument("--chart", metavar="FILE", help="film of the layer x head maps, as .html or .svg")
    parser.add_argument(
        "--compare-one-shot", metavar="SEED,SEED", type=listed(whole_number(0)),
        help="instead of one run: with these seeds, also prune at once and learn as long, and say whether cycles pay",
    )  # fmt: skip
    parser.add_argument(
        "--judge", metavar="TEXT", default=DEFAULT_TEXT, help="of the comparison (default: test splits)"
    )
    parser.add_argument("--judge-tokens", metavar="N", type=whole_number(2), default=16_384, help="default 16384")
    parser.add_argument("--threads", metavar="N", type=whole_number(1), help="threads (default: physical cores)")


def run(options: argparse.Namespace) -> None:
    from sentinel.adapt.adaptation import read_state
    from sentinel.adapt.budget import budget_unit, make_budget, share_costs, size_costs
    from sentinel.adapt.corpora import load_texts, refuse_seen_text
    from sentinel.commands.adapt_comparison import compare
    from sentinel.files import check_output_file
    from sentinel.report.charts import check_chart_path

    unit = budget_unit(options.budget)
    if options.chart is not None:
        check_chart_path(options.chart)
        check_output_file(options.chart)
    settings = settings_of(options)
    output, state = _places(options)
    found = read_state(state) if options.resume else None
    loaded = load_model(options)
    loaded.require_real_weights("what its heads are worth")
    windows, step = windows_of(options, loaded)
    if options.compare_one_shot:
        refuse_seen_text(loaded.record.then(step), load_texts(options.judge, "test"))
    dense = prepared(loaded, options)
    latencies = found[0].latencies if found and found[0].latencies else measured_latencies(dense)
    spec = dataclasses.replace(dense.spec, out_bias=True, down_bias=True)  # compensation adds the biases
    costs: dict[Unit, CostTable] = {"heads": share_costs(spec), "MB": size_costs(spec), "ms": latencies}
    whole = _whole_costs(loaded, dense, unit, measured=found is not None)
    budget = make_budget(options.budget, costs, options.floor_heads, whole=whole)
    if found:
        budget = dataclasses.replace(budget, limit=found[0].limit)
    if options.compare_one_shot:
        compare(options, loaded, dense, budget, settings, output)
        return
    controller = make_controller(loaded, dense, windows, budget, settings, latencies)
    if found:
        controller.resume(*found)
    _run(controller, options, loaded, output, state, step)


def _places(options: argparse.Namespace) -> tuple[Path, Path]:
    """The output folder and that of the state, both fit to be written."""
    from sentinel.adapt.adaptation import WEIGHTS, is_state
    from sentinel.commands.adapt_comparison import FILE
    from sentinel.files import check_output_folder

    output = Path(options.output).expanduser().resolve()
    state = output.with_name(f"{output.name}.state")
    if options.compare_one_shot:
        return check_output_folder(output, options.force, [FILE]), state
    if options.resume and not is_state(state):
        raise InputError(f"there is no interrupted run in {state}; leave out --resume")
    if not options.resume and not options.force and is_state(state):
        raise InputError(f"{state} holds an interrupted run; add --resume to go on with it, or --force to start anew")
    again = options.resume or options.force
    check_output_folder(state, again, () if options.resume else [WEIGHTS])
    return check_model_output(options.output, again, options.model), state


def settings_of(options: argparse.Namespace) -> ControllerSettings:
    """Settings from the arguments; what was not given is as in `ControllerSettings`."""
    from sentinel.adapt.controller import ControllerSettings

    default = ControllerSettings()
    names = {f.name for f in dataclasses.fields(default)} - {"recovery"}
    given = {name: value for name, value in vars(options).items() if name in names and value is not None}
    chosen = dataclasses.replace(default, **given)
    learning = {n: v for n in ("train", "batch", "learning_rate") if (v := getattr(options, n)) is not None}
    if options.steps is None:
        minutes = MINUTES if options.minutes is None else options.minutes
        if minutes <= 0:
            raise InputError(f"minutes must be above 0, not {minutes:g}")
        length = {"steps": None, "minutes": minutes / chosen.cycles}
    else:
        length = {"steps": options.steps}
    return dataclasses.replace(chosen, recovery=dataclasses.replace(default.recovery, **learning, **length))


def _whole_costs(loaded: LoadedModel, dense: Decoder, unit: Unit, *, measured: bool) -> dict[Unit, float]:
    """Costs of the model as loaded where those of ``dense``, with K/V repeated and with biases, are others. Its time is
    not ``measured`` again for a run that goes on."""
    from sentinel.measure.latency import measure_latencies

    costs: dict[Unit, float] = {"MB": loaded.spec.parameter_count() * 4 / 1e6}
    if unit == "ms" and dense is not loaded.decoder and not measured:
        costs["ms"] = measure_latencies(loaded.decoder).dense_ms
    return costs


def measured_latencies(dense: Decoder) -> CostTable:
    """Milliseconds of a decoded token at level 1 by head groups, measured here; neurons all stay."""
    from sentinel.adapt.budget import costs_by_layer
    from sentinel.measure.latency import measure_latencies

    table = measure_latencies(dense)
    neurons = [layer.intermediate_size for layer in dense.spec.layers]
    return costs_by_layer(dense.spec, lambda counts: table.predict_counts(counts, neurons))


def windows_of(options: argparse.Namespace, loaded: LoadedModel) -> tuple[tuple[Tensor, Tensor, Tensor], Adapted]:
    """Calibration, training and held-out windows, and what the record will say of an adaptation by them."""
    from sentinel.adapt.gates import short_windows
    from sentinel.commands.recover import training_windows
    from sentinel.models.record import Adapted

    options.length = min(2 * TRAIN_LENGTH, loaded.spec.max_seq_len)
    train, held_out = training_windows(options, loaded)
    needed = max(2, options.calibration_tokens // options.length)
    if len(train.tokens) < needed:
        raise InputError(
            f"--tokens {options.tokens} are fewer than the calibration needs, {needed * options.length}; ask for more"
        )
    step = Adapted(
        source=loaded.name,
        budget=options.budget,
        texts=options.text,
        documents=train.fingerprints,
        held_out=held_out.fingerprints,
        expanded_kv=options.expand_kv,
    )
    return (train.tokens[:needed], short_windows(train.tokens, TRAIN_LENGTH), held_out.tokens), step


def make_controller(
    loaded: LoadedModel,
    dense: Decoder,
    windows: tuple[Tensor, Tensor, Tensor],
    budget: Budget,
    settings: ControllerSettings,
    latencies: CostTable | None,
) -> Controller:
    """A controller of ``dense``, which knows by what model and text it was made."""
    from sentinel.adapt.controller import Controller
    from sentinel.adapt.recovery_state import identity_of

    identity = identity_of((dense,), windows, "")
    return Controller(dense, *windows, budget, settings, latencies=latencies, name=loaded.name, identity=identity)


def _run(
    controller: Controller,
    options: argparse.Namespace,
    loaded: LoadedModel,
    output: Path,
    state: Path,
    step: Adapted,
) -> None:
    from sentinel.adapt.adaptation import FILE, is_state, write_state
    from sentinel.files import remove_written, write_into, write_text
    from sentinel.models.checkpoint import read_spec, save_checkpoint
    from sentinel.report.charts import chart_text
    from sentinel.report.film import film

    replace = options.force or options.resume

    def keep(student: Decoder, best: bool) -> None:
        nonlocal replace
        if best:
            made = controller.record
            done = dataclasses.replace(step, settings=made.settings, cycles=len(made.cycles))
            save_checkpoint(student, output, loaded.tokenizer, loaded.record.then(done), force=replace)
        with write_into(output) as temporary:
            (temporary / FILE).write_text(controller.record.to_json(), encoding="utf-8")
        replace = True  # what stands there is of this run
        write_state(state, controller.record, controller.model.decoder.state_dict())

    def what_is_kept() -> str:
        if not is_state(state):
            return "no cycle is kept yet"
        go_on = command_again(options, "--resume")
        return f"the cycles that are done are kept in {state}, the best model so far in {output}; go on with: {go_on}"

    with telling_what_is_kept(what_is_kept):
        record = controller.run(keep)
    remove_written(state)
    if options.chart:
        suffix = Path(options.chart).suffix
        write_text(options.chart, chart_text(film(record, slider=suffix == ".html"), suffix))
    _print_cycles(record, loaded)
    said = not_smaller(loaded.spec, read_spec(output), loaded.name, expanded=options.expand_kv)
    if said is not None:
        print(said)
    print(output)


def _print_cycles(record: Adaptation, loaded: LoadedModel) -> None:
    """The model as loaded, and every cycle's."""
    from sentinel.adapt.likelihood import perplexity_of
    from sentinel.report.terminal import print_table, stdout_console

    groups = sum(layer.n_kv_head for layer in loaded.spec.layers)
    rows = [["as loaded", f"{groups}", "", "", f"{loaded.spec.parameter_count():,}", "", "1.000x", ""]]
    rows += [
        [
            f"{cycle.number + 1}{' (kept)' if cycle is record.best else ''}",
            f"{cycle.heads}",
            f"{len(cycle.pruned)}",
            f"{len(cycle.regrown)}",
            f"{cycle.parameters:,}",
            "–" if cycle.latency_ms is None else f"{cycle.latency_ms:.1f}",
            f"{perplexity_of(cycle.held_out_nll - (record.dense_nll or 0.0)):.3f}x",
            f"{sum(cycle.seconds.values()):.0f}",
        ]
        for cycle in record.cycles
    ]
    console = stdout_console()
    columns = ["cycle", "heads", "pruned", "regrown", "parameters", "ms per token", "over dense", "seconds"]
    print_table(console, columns, rows)
    console.print(f"Held-out perplexity over the unpruned model's; it ended since {record.stopped}.", style="dim")

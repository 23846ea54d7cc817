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
from sentinel.commands.pruning import DEFAULT_TEXT, not_smaller, ratio
from sentinel.errors import InputError
from sentinel.models.record import SELF

if TYPE_CHECKING:
    from sentinel.adapt.cycles.adaptation import Adaptation
    from sentinel.adapt.cycles.comparison import Comparison
    from sentinel.adapt.cycles.controller import ControllerSettings
    from sentinel.api.adapting import AdaptationText
    from sentinel.formats.sources import LoadedModel

MINUTES = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="folder to write")
    parser.add_argument(
        "--budget", metavar="B", required=True,
        help="fp32 weights (400MB), speed-up at level 1 as measured here (1.3x), or share of heads that stay (0.5)",
    )  # fmt: skip
    parser.add_argument(
        "--text", metavar="TEXT", default=SELF,
        help="to learn from: self (default: text that the model writes), files, folders or built-in texts, with commas "
        "between",
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
    from sentinel.adapt.cycles.budget import budget_unit
    from sentinel.api.adapting import adapt, check_state
    from sentinel.api.model import Model
    from sentinel.files import check_output_file, write_text
    from sentinel.report.charts import chart_text, check_chart_path
    from sentinel.report.film import film

    budget_unit(options.budget)
    if options.chart is not None:
        check_chart_path(options.chart)
        check_output_file(options.chart)
    settings = settings_of(options)
    if options.compare_one_shot:
        _compare(options, settings)
        return
    check_state(Path(options.output).expanduser().resolve(), resume=options.resume, force=options.force)
    output = check_model_output(options.output, options.resume or options.force, options.model)
    model = Model(load_model(options), options.model)
    with telling_what_is_kept(lambda: _what_is_kept(options, output)):
        made = adapt(
            model,
            output,
            options.budget,
            text=_text_of(options),
            expand_kv=options.expand_kv,
            floor_heads=options.floor_heads,
            settings=settings,
            resume=options.resume,
            force=options.force,
        )
    record = made.adaptation
    assert record is not None
    if options.chart:
        suffix = Path(options.chart).suffix
        write_text(options.chart, chart_text(film(record, slider=suffix == ".html"), suffix))
    _print_cycles(record, model.loaded)
    said = not_smaller(model.spec, made.spec, model.name, expanded=options.expand_kv)
    if said is not None:
        print(said)
    print(output)


def _what_is_kept(options: argparse.Namespace, output: Path) -> str:
    from sentinel.adapt.cycles.adaptation import is_state
    from sentinel.api.adapting import state_of

    state = state_of(output)
    if not is_state(state):
        return "no cycle is kept yet"
    go_on = command_again(options, "--resume")
    return f"the cycles that are done are kept in {state}, the best model so far in {output}; go on with: {go_on}"


def _text_of(options: argparse.Namespace) -> AdaptationText:
    from sentinel.api.adapting import AdaptationText

    return AdaptationText(
        options.text, options.held_out, options.tokens, options.held_out_tokens, options.calibration_tokens
    )


def _compare(options: argparse.Namespace, settings: ControllerSettings) -> None:
    """Cycles against one-shot pruning with recovery."""
    from sentinel.api.adapting import task_of
    from sentinel.api.cycles_comparison import FILE, compare_cycles
    from sentinel.files import check_output_folder

    output = check_output_folder(Path(options.output).expanduser().resolve(), options.force, [FILE])
    task = task_of(
        load_model(options),
        options.budget,
        _text_of(options),
        expand_kv=options.expand_kv,
        floor_heads=options.floor_heads,
    )
    found = compare_cycles(
        task,
        settings,
        options.compare_one_shot,
        output,
        judged_by=options.judge,
        tokens=options.judge_tokens,
        force=options.force,
    )
    _print_comparison(found)
    print(output / FILE)


def settings_of(options: argparse.Namespace) -> ControllerSettings:
    """Settings from the arguments; what was not given is as in `ControllerSettings`."""
    from sentinel.adapt.cycles.controller import ControllerSettings

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


def _print_cycles(record: Adaptation, loaded: LoadedModel) -> None:
    """The model as loaded, and every cycle's."""
    from sentinel.adapt.recovery.likelihood import perplexity_of
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


def _print_comparison(comparison: Comparison) -> None:
    """Table and verdict on stdout."""
    from sentinel.report.terminal import print_table, stdout_console

    rows = [
        [
            f"{trial.seed}",
            f"{trial.heads}",
            f"{trial.cycles}",
            *(f"{ratio:.3f}x" for ratio in (trial.controller_ratio, trial.one_shot_ratio)),
            f"{trial.controller_seconds:.0f}",
            f"{trial.one_shot_seconds:.0f}",
            f"{trial.controller_updates}",
            f"{trial.one_shot_updates}",
        ]
        for trial in comparison.trials
    ]
    console = stdout_console()
    columns = ["seed", "heads", "cycles", "controller", "one-shot", "seconds", "one-shot", "updates", "one-shot"]
    print_table(console, columns, rows)
    console.print(
        f"Perplexity over the unpruned model's on {comparison.text}, budget {comparison.budget}.", style="dim"
    )
    console.print(comparison.verdict)

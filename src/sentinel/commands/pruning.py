"""Arguments of pruning that several commands share."""

from __future__ import annotations

import argparse
import bisect
from pathlib import Path
from typing import TYPE_CHECKING

from sentinel.adapt.pruning import criteria
from sentinel.commands.arguments import share, whole_number
from sentinel.files import check_output_file
from sentinel.models.record import SELF
from sentinel.models.spec import ModelSpec

if TYPE_CHECKING:
    from sentinel.adapt.pruning.prune import PruningSettings

DEFAULT_TEXT = "built-in"
KINDS = "judges"  # as `adapt.text.judges`


def ratio(text: str) -> float:
    """Argument type: a ratio between 0 and 1, or a percentage up to ``100%``."""
    value = share(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text} is more than the whole; give a ratio between 0 and 1")
    return value


def ratios(text: str) -> tuple[float, ...]:
    """Argument type: ratios with commas between."""
    values = tuple(ratio(part) for part in text.split(","))
    if len(set(values)) != len(values):
        raise argparse.ArgumentTypeError(f"{text!r} names a ratio twice")
    return values


def add_calibration(parser: argparse.ArgumentParser) -> None:
    """Criterion and calibration text."""
    parser.add_argument(
        "--criterion", default=criteria.DEFAULT, metavar="C",
        help=f"how units are ranked: {', '.join(criteria.NAMES)} (default {criteria.DEFAULT})",
    )  # fmt: skip
    parser.add_argument(
        "--calibration", metavar="TEXT", default=SELF,
        help="self (default: text that the model writes), text files, folders or built-in texts, with commas between",
    )  # fmt: skip
    parser.add_argument("--calibration-tokens", metavar="N", type=whole_number(1), default=24_576, help="default 24576")
    parser.add_argument("--statistics", metavar="FILE", help="keep calibration sums here, and go on from them")
    parser.add_argument(
        "--scope", choices=("global", "uniform"), default="global", help="rank all layers together or each"
    )
    parser.add_argument(
        "--floor-heads", metavar="N", type=whole_number(0), default=0, help="heads that every layer keeps"
    )
    parser.add_argument("--floor-neurons", metavar="N", type=whole_number(0), default=0, help="neurons, likewise")
    parser.add_argument("--expand-kv", action="store_true", help="repeat grouped K/V, so that every head stands alone")
    parser.add_argument("--seed", metavar="N", type=whole_number(0), default=0, help="of sampling (default 0)")


def settings_of(options: argparse.Namespace, *, compensate: bool) -> PruningSettings:
    """Pruning settings from the arguments."""
    from sentinel.adapt.pruning.prune import PruningSettings

    statistics = None if options.statistics is None else Path(options.statistics)
    if statistics is not None:
        check_output_file(statistics, regular=True)
    return PruningSettings(
        criterion=options.criterion,
        scope=options.scope,
        floor_groups=options.floor_heads,
        floor_neurons=options.floor_neurons,
        compensate=compensate,
        tokens=options.calibration_tokens,
        seed=options.seed,
        statistics_file=statistics,
    )


def not_smaller(before: ModelSpec, after: ModelSpec, name: str, *, expanded: bool) -> str | None:
    """One line on what of a pruned model is not below that of ``before``, the model ``name`` as loaded: parameters and
    bytes read per token. None when all of it is."""
    found = []
    for what, cost in (
        ("weights", lambda spec: spec.parameter_count() * 4),
        ("weights read per token", ModelSpec.weight_bytes_per_token),
    ):
        was, now = cost(before) / 1e6, cost(after) / 1e6
        if now >= was:
            found.append(f"{now:,.1f} MB of {what} are not below the {was:,.1f} MB of {name} as loaded")
            break  # the second follows from the first
    cached = after.kv_bytes_per_position() - before.kv_bytes_per_position()
    if cached > 0:
        saved = before.weight_bytes_per_token() - after.weight_bytes_per_token()
        ratio = after.kv_bytes_per_position() / before.kv_bytes_per_position()
        even = _even(before, after, saved)
        beyond = "" if even is None else f", so that beyond {even:,} cached tokens a token reads more than before"
        found.append(f"KV cache per token is {ratio:.2g}x{beyond}")
    if not found:
        return None
    return f"{'--expand-kv repeats grouped K/V first: ' if expanded else ''}{', and '.join(found)}."


def _even(before: ModelSpec, after: ModelSpec, saved: int) -> int | None:
    """The most cached tokens of which a token reads no more than the ``saved`` bytes beyond what it did; None where there
    are no such, or windows keep it so for any number."""
    each = after.kv_bytes_per_position() - before.kv_bytes_per_position()
    most = max(after.max_seq_len, saved // each) + 1

    def more(context: int) -> int:
        return after.kv_bytes_read(context) - before.kv_bytes_read(context)

    return bisect.bisect_right(range(most), saved, key=more) - 1 if 0 < saved < more(most) else None

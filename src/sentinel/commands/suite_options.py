"""Options of suites, which measuring commands share."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from sentinel.commands.arguments import listed, names, real_number, whole_number
from sentinel.commands.pruning import ratio, ratios


def add_resume(parser: Any) -> None:
    """Go on with an earlier run."""
    parser.add_argument("--resume", metavar="FILE", help="keep what this results file holds, measure only the rest")


def add_suite_options(group: Any) -> None:
    """Flags of `SuiteSettings`; those that are not given are absent from the parsed arguments."""
    count = whole_number(1)

    def add(flag: str, metavar: str, kind: Any, help: str) -> None:
        group.add_argument(flag, metavar=metavar, type=kind, default=argparse.SUPPRESS, help=help)

    add("--batch", "B", count, "sequences at once")
    add("--prompt-tokens", "N", listed(count), "tokens of the prompt; several lengths (N,N) for peers and prefill")
    add("--new-tokens", "N", count, "tokens that are generated")
    add("--rounds", "N", count, "rounds, all engines in turn, after one of warm-up")
    add("--levels", "L,L", listed(whole_number(0)), "optimisation levels")
    add("--precision", "P,P", names, "of level 3: int8, int4, or both")
    add("--lengths", "N,N", listed(count), "tokens of context")
    add("--criteria", "C,C", names, "criteria of pruning, or 'all'")
    add("--heads", "R,R", ratios, "shares of heads that are removed")
    add("--neurons", "R", ratio, "share of neurons that is removed too (as many as heads)")
    add("--batches", "B,B", listed(count), "numbers of sequences of the suites batch and peers")
    add("--calibration", "TEXT", str, "for pruning (self, text that the model writes itself)")
    add("--calibration-tokens", "N", count, "of it")
    add(
        "--text",
        "TEXT",
        str,
        "to judge by (quality: judges, kinds that nothing learns from)",
    )
    add("--eval-tokens", "N", whole_number(2), "per text")
    add("--shapes", "S,S", names, "shapes of the scaling suite: known ids or folders")
    add("--drafts", "D,D", names, "what proposes tokens: int8, int4, a stored width as 0.5, lookup")
    add("--recovery-steps", "N", whole_number(0), "of every integrated model before it is judged; 0: speed alone")
    add("--unpruned", "MODEL", str, "of peers: what MODEL was pruned from (the one that its record names)")
    add("--clients", "N,N", listed(count), "clients of a server at once")
    add(
        "--seconds",
        "S",
        real_number,
        "of serve: how long each number of clients asks, and an overload lasts (60 at most)",
    )
    add("--soak", "S", real_number, "of serve: seconds of the soak")
    group.add_argument(
        "--expand-kv",
        action="store_true",
        default=argparse.SUPPRESS,
        help="repeat grouped K/V: every head stands alone",
    )


def given_options(options: argparse.Namespace) -> dict[str, Any]:
    """The suite options that the arguments name."""
    from sentinel.infer.levels import check_level
    from sentinel.infer.opening import check_precision
    from sentinel.measure.suites.request import SuiteSettings

    known = {field.name for field in dataclasses.fields(SuiteSettings)}
    given = {name: value for name, value in vars(options).items() if name in known}
    for level in given.get("levels", ()):
        check_level(level)
    for precision in given.get("precision", ()):
        check_precision(3, precision)
    return given

"""Quality before refusal: under load answers go on at a narrower width of the model, and back once the load is gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sentinel.errors import InputError
from sentinel.infer.draft_choice import parse_ratios
from sentinel.infer.engine import Engine

SETTLE_S = 1.0  # between two steps down: so long a step takes to show
CALM_S = 5.0  # without load before a step up
CALM = 0.5  # of both targets: the share below which there is no load
WEIGHT = 0.2  # of the newest round in the mean time per token


@dataclass(frozen=True)
class Shedding:
    """What a `Batcher` may go down to: ``narrower`` engines of the same model by the name of their width, the widest first,
    below that of its own engine, called ``name``.

    Targets in seconds: the longest that a request has waited to begin (``wait_s``), and the mean time per token of the
    answers under way (``tpot_s``). Raises `InputError` for targets that are not above 0.
    """

    name: str
    narrower: Mapping[str, Engine]
    wait_s: float = 0.5
    tpot_s: float = 0.2
    clock: Callable[[], float] = field(default=time.perf_counter, repr=False)

    def __post_init__(self) -> None:
        if not (self.wait_s > 0 and self.tpot_s > 0):
            raise InputError(f"the targets of shedding must be above 0 s, not {self.wait_s:g} and {self.tpot_s:g}")

    def rule(self) -> LoadRule:
        """The rule of these targets, at the widest width."""
        return LoadRule(len(self.narrower), self.wait_s, self.tpot_s, self.clock)


def width_name(heads: float, neurons: float) -> str:
    """``0.5`` for a width without half of the heads, ``0.5/0.2`` where neurons are left out too, ``0`` for the whole."""
    return f"{heads:g}/{neurons:g}" if neurons else f"{heads:g}"


def widths_to_shed(names: Sequence[str], heads: float, neurons: float) -> list[tuple[float, float]]:
    """The ratios of ``names`` (`width_name`); `InputError` unless each is narrower than the one before it, the first than
    ``heads`` and ``neurons``."""
    found: list[tuple[float, float]] = []
    before = (heads, neurons)
    for name in names:
        ratios = parse_ratios(name.strip())
        if ratios is None:
            raise InputError(f"a width to shed is 0.5 (of heads) or 0.5/0.2 (heads/neurons), not {name!r}")
        if ratios == before or ratios[0] < before[0] or ratios[1] < before[1]:
            raise InputError(
                f"the width {width_name(*ratios)} to shed is not narrower than {width_name(*before)} before it; "
                "name the widest first"
            )
        found.append(ratios)
        before = ratios
    return found


class LoadRule:
    """Which of ``n_narrower`` widths, or 0 for the widest, is in force.

    While either target is missed it goes down by one every `SETTLE_S`. Once both have been kept at half of them for
    `CALM_S`, it goes up by one, and so again. In between it stays, so that it does not swing.
    """

    def __init__(self, n_narrower: int, wait_s: float, tpot_s: float, clock: Callable[[], float]) -> None:
        self._lowest, self._wait_s, self._tpot_s, self._clock = n_narrower, wait_s, tpot_s, clock
        self._down = -SETTLE_S + clock()  # the last step down
        self._loaded = clock()  # the last time that there was load, or a step up
        self._tpot: float | None = None
        self.width = 0

    def saw_round(self, seconds: float) -> None:
        """A round that gave a token to every answer under way took so long."""
        self._tpot = seconds if self._tpot is None else (1 - WEIGHT) * self._tpot + WEIGHT * seconds

    def look(self, waited_s: float, n_answer: int) -> int:
        """The width in force now that the oldest request has waited for ``waited_s``, and so many answers are under way."""
        now = self._clock()
        if not n_answer:
            self._tpot = None  # it is of answers that are gone
        load = max(waited_s / self._wait_s, (self._tpot or 0.0) / self._tpot_s)
        if load > 1 and self.width < self._lowest and now - self._down >= SETTLE_S:
            self.width, self._down = self.width + 1, now
            self._tpot = None  # it is of another width
        if load > CALM:
            self._loaded = now
        while self.width and now - self._loaded >= CALM_S:
            self.width, self._loaded = self.width - 1, self._loaded + CALM_S
        return self.width

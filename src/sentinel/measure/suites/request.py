"""What every suite is given: the model, how to load it again, the machine's cache, and what to measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sentinel.errors import InputError
from sentinel.formats.sources import LoadedModel
from sentinel.infer.opening import levels_on
from sentinel.measure.method import Run, interleave
from sentinel.measure.results import Result, Sample
from sentinel.measure.suites import Suite
from sentinel.measure.suites.engines import Engines, Subject
from sentinel.models.record import SELF
from sentinel.progress import say


@dataclass(frozen=True)
class SuiteSettings:
    """All options of all suites; a suite reads those that its line in the table names.

    prompt_tokens: several where the suite says so. heads, neurons: ratios that are removed; ``neurons`` None is "as many
    as heads". batch, batches: sequences at once. lengths: tokens of context. eval_tokens: per text. rounds: after one of
    warm-up. passes: what the run spreads these rounds over, no option; where they do not come out even, there are more
    rounds. expand_kv: repeat grouped keys and values before pruning. shapes: names of known shapes, which get random
    weights. recovery_steps: of every model before it is judged; 0 judges nothing. drafts: what proposes tokens
    (`DraftChoice.parse`, or lookup). unpruned: the model that the measured one was pruned from, by default the one that its
    record names. clients: of a server, at once. seconds: that each number of clients asks, and an overload lasts. soak:
    seconds of it.
    """

    batch: int = 1
    prompt_tokens: tuple[int, ...] = (64,)
    new_tokens: int = 20
    rounds: int = 5
    passes: int = 1
    levels: tuple[int, ...] = (0, 1, 2, 3)
    precision: tuple[str, ...] = ("int8",)
    heads: tuple[float, ...] = (0.0,)
    neurons: float | None = None
    batches: tuple[int, ...] = (1,)
    lengths: tuple[int, ...] = ()
    criteria: tuple[str, ...] = ()
    calibration: str = SELF
    calibration_tokens: int = 8192
    text: str = "built-in"
    eval_tokens: int = 4096
    expand_kv: bool = False
    shapes: tuple[str, ...] = ()
    recovery_steps: int = 0
    drafts: tuple[str, ...] = ()
    unpruned: str | None = None
    clients: tuple[int, ...] = ()
    seconds: float = 10.0
    soak: float = 60.0

    @property
    def prompt(self) -> int:
        """Tokens of the prompt, in a suite that takes one length."""
        (only,) = self.prompt_tokens
        return only

    @property
    def rounds_of_pass(self) -> int:
        """Rounds of each pass."""
        return -(-self.rounds // self.passes)


@dataclass(frozen=True)
class Request:
    """One run of a suite.

    ``source`` and ``random_weights`` say how a process of its own loads the model again; ``engines`` are shared by all
    suites of a run; ``given`` names the settings that the caller chose. ``number`` counts passes from 1, ``earlier`` holds
    the rows of the one before, by key; without ``warm_up`` the engines have just run. ``cache_mb`` is the size of the
    last-level cache, None where it is not known.
    """

    loaded: LoadedModel
    source: str
    random_weights: int | None
    engines: Engines
    settings: SuiteSettings = SuiteSettings()
    given: frozenset[str] = frozenset()
    number: int = 1
    earlier: Mapping[tuple[object, ...], Result] = field(default_factory=dict)
    warm_up: bool = True
    cache_mb: float | None = None

    @property
    def levels(self) -> tuple[int, ...]:
        """The levels that the settings name; on an accelerator without those that run on the CPU alone, which are named,
        but for what the caller chose: that is refused when its engine is made."""
        device, levels = self.loaded.decoder.device, self.settings.levels
        if device.type == "cpu" or "levels" in self.given:
            return levels
        kept = tuple(level for level in levels if level in levels_on(device.type))
        if kept != levels:
            say(f"level 3 runs on the CPU only, and is left out on {device}")
        return kept

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions of level 3 that the settings name; none on an accelerator, where those that the caller chose are
        refused."""
        if self.loaded.decoder.device.type == "cpu":
            return self.settings.precision
        if "precision" in self.given:
            self.require_cpu("level 3 runs")
        return ()

    def require_cpu(self, what: str) -> None:
        """Refuse what would run on the CPU whatever device was asked for."""
        device = self.loaded.decoder.device
        if device.type != "cpu":
            raise InputError(f"{what} on the CPU only, not on {device}; leave out --device")

    def row(self, suite: str, subject: Subject, **fields: Any) -> Result:
        """A result of ``suite`` for ``subject``, its speed not filled in."""
        described = {
            "engine": subject.engine.name,
            "level": subject.level,
            "precision": subject.precision,
            "heads_pruned": subject.heads,
            "neurons_pruned": subject.neurons,
            "parameters": subject.spec.parameter_count(),
            "weight_bytes_per_token": subject.engine.weight_bytes_per_token(),
        }
        return Result(suite=suite, model=self.loaded.name, weights=self.loaded.weights, **{**described, **fields})

    def in_turn(self, runs: Mapping[str, Run], rows: Mapping[str, Result], description: str) -> dict[str, list[Sample]]:
        """Samples by name, of all passes so far: this one calls ``runs`` in turn, and ``rows`` by the same names tell which
        earlier ones they belong to. Raises `InputError` when one of them has none.
        """
        lost = next((row for row in rows.values() if row.key not in self.earlier), None)
        if self.number > 1 and lost is not None:
            raise InputError(
                f"the earlier passes hold no row of {lost.suite} {lost.engine} to go on from; measure anew"
            )
        found = interleave(runs, self.settings.rounds_of_pass, description, warm_up=self.warm_up)
        if self.number == 1:
            return found
        joined = {name: [*self.earlier[rows[name].key].samples, *samples] for name, samples in found.items()}
        if any(sample.keys() != samples[0].keys() for samples in joined.values() for sample in samples):
            raise InputError("the earlier passes are of another version, whose samples tell other things; measure anew")
        return joined

    def check_context(self, tokens: int) -> None:
        """Refuse more tokens than the model's context."""
        limit = self.loaded.spec.max_seq_len
        if tokens > limit:
            raise InputError(f"{tokens} tokens do not fit the context of {self.loaded.name}, {limit}; ask for fewer")


def settings_of(suite: Suite, given: Mapping[str, Any], *, quick: bool = False) -> SuiteSettings:
    """The suite's own settings with those of ``given``; `InputError` for one that the suite does not take."""
    unknown = sorted(set(given) - set(suite.options))
    if unknown:
        raise InputError(f"suite {suite.name} takes no --{unknown[0].replace('_', '-')}; it takes {suite.flags}")
    chosen: dict[str, Any] = {**suite.options, **(suite.quick if quick else {}), **given}
    prompts = chosen.get("prompt_tokens")
    if isinstance(prompts, int):
        chosen["prompt_tokens"] = prompts = (prompts,)
    if prompts is not None and len(prompts) != 1 and not suite.several_prompts:
        raise InputError(f"suite {suite.name} takes one length of prompts, not {len(prompts)}; run it once for each")
    return SuiteSettings(**chosen)

"""The search of `optimize`: configurations that are made, judged and timed, each kept as soon as there is one."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentinel.adapt.pruning.prune import PruningSettings
from sentinel.adapt.recovery.settings import RecoverySettings
from sentinel.adapt.text.corpora import load_texts, refuse_seen_text
from sentinel.adapt.text.kinds import Seen, halves
from sentinel.api.changing import make_pruner, quantize
from sentinel.api.learning import recover
from sentinel.api.model import Model, load
from sentinel.errors import InputError
from sentinel.files import (
    claim_folder,
    remove_written,
    write_into,
    write_text,
)
from sentinel.infer.engine import Engine, warm_up
from sentinel.measure import environment
from sentinel.measure.decode_speed import NEW_TOKENS, PROMPT_TOKENS, WHOLE, DecodeSpeed, Ratios, measure_decode_speed
from sentinel.measure.judge import Judge, over_kinds
from sentinel.measure.memory import MemoryRequest, measure_peak_memory
from sentinel.measure.method import generate_timed, interleave, random_prompts, timed_result
from sentinel.measure.results import Result, ResultSet
from sentinel.models.fingerprint import weights_fingerprint
from sentinel.models.record import Recovered
from sentinel.progress import say
from sentinel.report.optimized import PAGE, RESULTS, SUITE, Kinds, candidates_of, optimized_content, shape_of
from sentinel.report.recommend import EQUAL_SPEED, Demand, Recommendation
from sentinel.report.render import page_of

WIDTHS: tuple[Ratios, ...] = ((0.0, 0.1), (0.1, 0.1), (0.2, 0.2), (0.3, 0.3))
PRECISIONS = ("int8", "int4")
ROUNDS = 5
FINALISTS = 4  # pruned ones that are timed at the end, beside all that are not pruned
LEFT_BY_RECOVERY = 0.6  # of the logarithm of the perplexity ratio, as measured of SmolLM2-135M in 30 minutes
HOPELESS = 2.0  # times the increase that is asked for: without recovery no wider removal is judged after it
FOUND = "results.json"
STATISTICS = "statistics.safetensors"


@dataclass(frozen=True)
class How:
    """What decides which models are made and how they are judged."""

    widths: tuple[Ratios, ...]
    calibration: str
    calibration_tokens: int
    text: str
    eval_tokens: int


class Search:
    """Makes, judges and times configurations; every model and row is kept in ``folder`` as soon as there is one."""

    def __init__(
        self, model: Model, folder: Path, how: How, demand: Demand, minutes: float | None, threads: int | None
    ) -> None:
        loaded = model.loaded.in_fp32()
        loaded.require_real_weights("its optimisation")
        self.model = Model(loaded, model.source)
        self.folder, self.how, self.demand = folder, how, demand
        self.minutes, self.threads = minutes, threads
        self.texts = load_texts(how.text, "test")
        self._refuse_seen_kinds()
        self.kinds = Kinds(*halves(self.texts))
        asked = {"model": loaded.name, "fingerprint": weights_fingerprint(loaded.decoder), **dataclasses.asdict(how)}
        self.run_settings: dict[str, Any] = json.loads(json.dumps(asked))
        self.rows = self._earlier()
        self._speed: DecodeSpeed | None = None

    def _refuse_seen_kinds(self) -> None:
        """Raise `InputError` for a text of a kind that the model has seen, or that calibration will read."""
        record = self.model.record
        refuse_seen_text(record, self.texts)
        seen = Seen.of(record).also(
            self.how.calibration, ()
        )  # recovery reads what the model writes, which is of no kind
        for text in self.texts:
            if seen.kind_of(text) is True:
                raise InputError(
                    f"{text.label} is of a kind that is learned from, which would flatter the model; judge by other kinds"
                )

    def _earlier(self) -> dict[str, Result]:
        """The rows of a search that was interrupted; `InputError` when it was another one."""
        file = self.folder / FOUND
        if not file.exists():
            claim_folder(self.folder, [FOUND, STATISTICS])
            return {}
        found = ResultSet.read(file)
        earlier = found.runs.get(SUITE, {})
        changed = [name for name in self.run_settings if earlier.get(name) != self.run_settings[name]]
        if changed:
            raise InputError(
                f"{self.folder} holds a search with another {changed[0].replace('_', ' ')} ({earlier.get(changed[0])}, not "
                f"{self.run_settings[changed[0]]}); go on with that one, or remove the folder"
            )
        say(f"{len(found.results)} configurations are judged already, in {self.folder}")
        return {row.engine: row for row in found.results}

    def results(self) -> ResultSet:
        """All rows, with where they were measured."""
        return ResultSet(environment.describe("cpu"), list(self.rows.values()), {SUITE: self.run_settings})

    def run(self) -> None:
        """Make and judge what could be chosen, and time what came near."""
        minutes = self.minutes
        self._speed = measure_decode_speed(self.model.loaded, PRECISIONS, self.how.widths, self.threads)
        for precision in PRECISIONS:
            self._judged(precision, WHOLE, lambda: self.model)
        widths = self._faster_widths()
        pruned = self._pruned(widths)
        for width in widths:
            found = [self._judged(precision, width, functools.partial(load, pruned[width])) for precision in PRECISIONS]
            limit = self.demand.limit
            if minutes is None and limit is not None and all(self._ratio(row) > 1 + HOPELESS * limit for row in found):
                break
        if minutes is not None and pruned:
            self._recovered(pruned, minutes)
        self._time_finalists()

    def _ratio(self, row: Result) -> float:
        return over_kinds(row.by_kind, self.kinds.choose)[0] or float("inf")

    def _faster_widths(self) -> list[Ratios]:
        """The widths that are predicted to be faster than the whole model by more than noise, least removed first."""
        assert self._speed is not None
        speed = self._speed.tokens_per_s
        said = [
            w for w in self.how.widths if any(speed(p, w) > speed(p, WHOLE) * (1 + EQUAL_SPEED) for p in PRECISIONS)
        ]
        return sorted(said, key=lambda w: -self._speed.n_byte[PRECISIONS[0], w] if self._speed else 0)

    def _pruned(self, widths: Sequence[Ratios]) -> dict[Ratios, Path]:
        """Folders of the model at each width, compensated; those that are not there yet are made in one pass."""
        places = {width: self.folder / f"pruned-{width[0]:g}-{width[1]:g}" for width in widths}
        wanted = [width for width, place in places.items() if not place.exists()]
        if not wanted:
            return places
        loaded = self.model.loaded
        settings = PruningSettings(tokens=self.how.calibration_tokens, statistics_file=self.folder / STATISTICS)
        pruner = make_pruner(loaded, loaded.decoder, settings, self.how.calibration, self.how.text)
        order = pruner.order(max(h for h, _ in wanted), max(n for _, n in wanted))
        plans = [order.plan(*width) for width in wanted]
        for width, plan, decoder in zip(wanted, plans, pruner.apply(plans), strict=True):
            step = pruner.step(loaded.name, order, [plan], texts=self.how.calibration)
            made = dataclasses.replace(loaded, decoder=decoder, record=loaded.record.then(step))
            Model(made).save(places[width])
        return places

    def _recovered(self, pruned: dict[Ratios, Path], minutes: float) -> None:
        """One width learns: the fastest that is expected to come within the limit, else the least pruned."""
        limit = float("inf") if self.demand.limit is None else 1 + self.demand.limit
        fitting = [
            width
            for width in pruned
            if min(self._ratio(self.rows[_name(p, width)]) for p in PRECISIONS) ** LEFT_BY_RECOVERY <= limit
        ]
        width = fitting[-1] if fitting else next(iter(pruned))
        name = f"recovered-{width[0]:g}-{width[1]:g}-{minutes:g}"
        place = self.folder / name
        if not place.exists():
            say(f"the model without {shape_of('fp32', width)} learns for {minutes:g} minutes")
            settings = RecoverySettings(minutes=minutes)
            state = self.folder / f"{name}.state"
            recover(load(pruned[width]), self.model, settings=settings, state=state, in_place=True).save(place)
        for precision in PRECISIONS:
            self._judged(precision, width, functools.partial(load, place), minutes)

    def _judged(
        self, precision: str, width: Ratios, source: Callable[[], Model], minutes: float | None = None
    ) -> Result:
        """The row of a configuration: packed from ``source`` and judged, unless it is there."""
        name = _name(precision, width, minutes)
        place = self.folder / name
        assert self._speed is not None
        predicted = self._speed.tokens_per_s(precision, width)
        if name in self.rows and place.exists():
            known = self.rows[name] = _untimed(self.rows[name], predicted)
            return known
        say(f"{shape_of(precision, width)}{', recovered' if minutes else ''}: packing and judging")
        if not place.exists():
            self._packed(source(), precision).save(place)
        made = load(place)
        engine = made.engine(threads=self.threads)
        fields = self._judge(engine, Seen.of(made.record))
        engine.release()
        unpruned = width == WHOLE
        row = Result(
            suite=SUITE, model=self.model.name, weights="real", engine=name, level=3, precision=precision,
            heads_pruned=width[0], neurons_pruned=width[1], batch=1, prompt_tokens=PROMPT_TOKENS, new_tokens=NEW_TOKENS,
            tokens_per_s=predicted, parameters=made.spec.parameter_count(),
            weight_bytes_per_token=engine.weight_bytes_per_token(), compensated=None if unpruned else True,
            criterion=None if unpruned else PruningSettings().criterion, recovery_steps=_steps(made),
            speedup_over=_name("int8", WHOLE), text=", ".join(text.label for text in self.texts),
            context=self._judge.context, **fields,
        )  # fmt: skip
        self._keep(row)
        return row

    def _packed(self, made: Model, precision: str) -> Model:
        """``made`` as `quantize` packs it; int4 rounds on the same calibration text."""
        how = self.how
        return quantize(made, precision, calibration=how.calibration, calibration_tokens=how.calibration_tokens)

    @functools.cached_property
    def _judge(self) -> Judge:
        loaded = self.model.loaded
        return Judge(
            loaded.decoder, loaded.require_tokenizer(), self.texts, loaded.record, tokens_per_text=self.how.eval_tokens
        )

    def _keep(self, row: Result) -> None:
        self.rows[row.engine] = row
        write_text(self.folder / FOUND, self.results().to_json())

    def _time_finalists(self) -> None:
        """Time and weigh all that is not pruned, and what is pruned on the frontier of predicted speed and quality."""
        found = candidates_of(list(self.rows.values()), self.kinds)
        limit = self.demand.limit
        near = [c for c in found if c.speed.heads_pruned or c.speed.neurons_pruned]
        near = [c for c in near if limit is None or (c.perplexity_ratio or float("inf")) <= 1 + limit]
        names = [_name(p, WHOLE) for p in PRECISIONS] + [c.speed.engine for c in near[-FINALISTS:]]
        engines: dict[str, Engine] = {name: load(self.folder / name).engine(threads=self.threads) for name in names}
        spec = self.model.spec
        prompts = random_prompts(spec.vocab_size, 1, min(PROMPT_TOKENS, spec.max_seq_len // 2))
        count = min(NEW_TOKENS, spec.max_seq_len // 2)
        for engine in engines.values():
            warm_up(engine)
        runs = {name: functools.partial(_timed, engine, prompts, count) for name, engine in engines.items()}
        samples = interleave(runs, ROUNDS, "Timing what could be chosen")
        for name, engine in engines.items():
            engine.release()
            row = timed_result(
                dataclasses.replace(self.rows[name], new_tokens=count, prompt_tokens=len(prompts[0])),
                samples[names[0]],
                samples[name],
            )
            request = MemoryRequest(str(self.folder / name), None, f"level 3 {row.precision}", len(prompts[0]), count)
            self._keep(dataclasses.replace(row, peak_memory_mb=measure_peak_memory(request)))

    def write(self, made: Recommendation, results: ResultSet, place: Path, force: bool) -> None:
        """Write the chosen model with its page and results file, and remove what the search kept."""
        assert made.chosen is not None
        load(self.folder / made.chosen.speed.engine).save(place, force=force)
        with write_into(place) as temporary:
            results.write(temporary / RESULTS)
            (temporary / PAGE).write_text(page_of(optimized_content(results, self.kinds, made)), encoding="utf-8")
        for inner in sorted(path for path in self.folder.iterdir() if path.is_dir()):
            remove_written(inner)
        remove_written(self.folder)


def _name(precision: str, width: Ratios, minutes: float | None = None) -> str:
    """A configuration as the name of its folder and its row."""
    removed = "" if width == WHOLE else f"-{width[0]:g}-{width[1]:g}"
    return f"{precision}{removed}{'' if minutes is None else f'-recovered-{minutes:g}'}"


def _untimed(row: Result, predicted: float) -> Result:
    """A row with the speed that is predicted of it now, in place of what an earlier run timed."""
    fields = ("ttft_ms", "tpot_ms", "speedup", "speedup_low", "speedup_high", "peak_memory_mb", "passes")
    nothing: dict[str, Any] = dict.fromkeys(fields)
    return dataclasses.replace(row, tokens_per_s=predicted, samples=[], percentiles={}, **nothing)


def _timed(engine: Engine, prompts: list[list[int]], count: int) -> dict[str, float]:
    return generate_timed(engine, prompts, count)[1]


def _steps(made: Model) -> int | None:
    """Updates of the recovery among a model's steps; None without one."""
    return next((step.steps for step in made.record.steps if isinstance(step, Recovered)), None)

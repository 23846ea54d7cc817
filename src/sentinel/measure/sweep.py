"""Quality over models x criteria x pruning ratios, as jobs that may run side by side and in any order.

A job is one model, one criterion and one seed: its calibration is made once and serves every level. Rows hold no speeds,
since jobs that share a machine disturb each other's timings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import sentinel
from sentinel.adapt.pruning.compact import expand_kv
from sentinel.adapt.pruning.criteria import asked_for, criterion_named
from sentinel.adapt.pruning.plan import PruningPlan, check_ratio
from sentinel.adapt.pruning.prune import Pruner, PruningSettings
from sentinel.adapt.text.corpora import Text, load_texts
from sentinel.adapt.text.kinds import Seen
from sentinel.errors import InputError
from sentinel.files import check_output_file
from sentinel.formats.sources import load
from sentinel.infer.calibration_text import calibration_texts, calibration_windows
from sentinel.measure import environment
from sentinel.measure.judge import Judge
from sentinel.measure.results import Result, ResultSet
from sentinel.models.decoder import Decoder
from sentinel.models.record import SELF

SUITE = "sweep"
MODELS_AT_ONCE = 4  # pruned models in a job's memory
ALIKE = 3  # jobs of one model, all that there were, that fail with one sentence: the others of it would too


@dataclass(frozen=True)
class SweepSettings:
    """What every job of a sweep shares: the levels, the texts, and how units are ranked.

    Levels are ``heads`` x ``neurons`` (ratios removed); ``compensate`` holds True, False or both; ``eval_tokens`` is the
    amount of test text, of each text. ``device`` is where every job computes.
    """

    heads: tuple[float, ...]
    neurons: tuple[float, ...] = (0.0,)
    compensate: tuple[bool, ...] = (False, True)
    expand_kv: bool = False
    calibration: str = SELF
    calibration_tokens: int = 24_576
    text: str = "built-in"
    eval_tokens: int = 4096
    context: int = 512
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("heads", "neurons"):
            for value in getattr(self, name):
                check_ratio(name, value)
        if not self.levels:
            raise InputError("a sweep needs a level that removes something; give ratios above 0")

    @property
    def levels(self) -> list[tuple[float, float]]:
        """Ratios of heads and neurons, but for the model that is not pruned, which a job of its own judges."""
        return [(h, n) for n in sorted(set(self.neurons)) for h in sorted(set(self.heads)) if h or n]

    def identity(self) -> dict[str, Any]:
        """What rows of one results file must have in common."""
        lists = {name: sorted(set(getattr(self, name))) for name in ("heads", "neurons", "compensate")}
        return {"version": sentinel.__version__, **dataclasses.asdict(self), **lists}


@dataclass(frozen=True)
class Job:
    """One model under one criterion and seed, at every level; without a criterion, the model as it is."""

    model: str
    criterion: str | None = None
    seed: int | None = None

    @property
    def label(self) -> str:
        return self.model if self.criterion is None else f"{self.model}, {self.criterion}, seed {self.seed}"


@dataclass(frozen=True)
class Outcome:
    """A job's rows, or the sentence that says why there are none."""

    job: Job
    rows: tuple[Result, ...] = ()
    error: str | None = None


def plan_jobs(models: Sequence[str], criteria: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """All jobs, those of a model together, so that a worker loads it once. Raises `InputError` for unknown criteria."""
    criteria = asked_for(criteria)
    for criterion in criteria:
        criterion_named(criterion)
    jobs: list[Job] = []
    for model in dict.fromkeys(models):
        jobs.append(Job(model))
        jobs += [Job(model, criterion, seed) for seed in dict.fromkeys(seeds) for criterion in dict.fromkeys(criteria)]
    return jobs


def check_texts(settings: SweepSettings) -> None:
    """Load the texts once before the workers do, and refuse any that calibration and evaluation share."""
    calibration_texts(settings.calibration, load_texts(settings.text, "test"))


def run_job(settings: SweepSettings, job: Job) -> Outcome:
    """Run a job in this process; bad input becomes the outcome's sentence."""
    try:
        subject = _subject(settings, job.model)
        rows = [subject.row(subject.whole)] if job.criterion is None else list(_pruned_rows(subject, settings, job))
    except InputError as error:
        return Outcome(job, error=str(error))
    return Outcome(job, tuple(rows))


class _Subject:
    """A model as loaded (``whole``) and to prune (``dense``), with its judge.

    Windows and statistics are kept for the jobs that follow.
    """

    def __init__(self, settings: SweepSettings, model: str) -> None:
        loaded = load(model, device=settings.device)
        loaded.require_real_weights("a perplexity")
        self.texts: list[Text] = load_texts(settings.text, "test")
        self.name, self.settings, self._loaded = model, settings, loaded
        self.tokenizer = loaded.require_tokenizer()
        self.whole = loaded.decoder
        self.dense = expand_kv(self.whole) if settings.expand_kv else self.whole
        self.context = min(settings.context, self.dense.spec.max_seq_len)
        self.judge = Judge(
            self.whole,
            self.tokenizer,
            self.texts,
            loaded.record,
            tokens_per_text=settings.eval_tokens,
            context=self.context,
        )
        self._calibrated: Pruner | None = None

    def pruner(self, settings: PruningSettings) -> Pruner:
        """A pruner; those of one seed in a row share windows and statistics."""
        if not settings.needs_text:
            return Pruner(self.dense, settings, None)
        if self._calibrated is None or self._calibrated.settings.seed != settings.seed:
            said = self.settings
            windows = calibration_windows(self._loaded, said.calibration, settings.tokens, seed=settings.seed)
            self._calibrated = Pruner(self.dense, settings, windows)
        return self._calibrated.with_settings(settings)

    def row(self, model: Decoder, **fields: Any) -> Result:
        """The judged ``model`` as a row."""
        row = Result(
            suite=SUITE,
            model=self.name,
            weights="real",
            engine="level 1",
            level=1,
            precision="fp32",
            heads_pruned=0.0,
            neurons_pruned=0.0,
            weight_bytes_per_token=model.spec.weight_bytes_per_token(),
            parameters=model.spec.parameter_count(),
            text=", ".join(text.label for text in self.texts),
            context=self.context,
        )
        seen = Seen.of(self._loaded.record)
        if fields.get("criterion") is not None and self._calibrated is not None:
            seen = seen.also(self.settings.calibration, self._calibrated.fingerprints)
        return replace(row, **fields, **self.judge(model, seen))


@lru_cache(maxsize=1)
def _subject(settings: SweepSettings, model: str) -> _Subject:
    return _Subject(settings, model)


def _pruned_rows(subject: _Subject, settings: SweepSettings, job: Job) -> Iterator[Result]:
    assert job.criterion is not None and job.seed is not None
    ranking = PruningSettings(
        job.criterion,
        compensate=any(settings.compensate),
        tokens=settings.calibration_tokens,
        seed=job.seed,
    )
    pruner = subject.pruner(ranking)
    order = pruner.order(max(settings.heads), max(settings.neurons))
    plans = [order.plan(heads, neurons) for heads, neurons in settings.levels]
    for compensate in settings.compensate:
        for plan, model in _models(pruner.with_compensation(compensate), plans):
            yield subject.row(
                model,
                criterion=job.criterion,
                seed=job.seed,
                compensated=compensate,
                heads_pruned=plan.heads,
                neurons_pruned=plan.neurons,
            )


def _models(pruner: Pruner, plans: Sequence[PruningPlan]) -> Iterator[tuple[PruningPlan, Decoder]]:
    for start in range(0, len(plans), MODELS_AT_ONCE):
        part = plans[start : start + MODELS_AT_ONCE]
        yield from zip(part, pruner.apply(part), strict=True)


class SweepFile:
    """The results file of a sweep: written whole after every job, and taken up again by ``resume``.

    Raises `InputError` for a file that stands there without ``resume``, and for one of other settings.
    """

    def __init__(self, path: Path, settings: SweepSettings, *, resume: bool) -> None:
        self.path = path
        self._rows: dict[Job, list[Result]] = {}
        self._settings = settings.identity()
        self.failed: dict[Job, str] = {}
        self.left_out: list[Job] = []
        check_output_file(path, regular=True)
        if not path.exists():
            self._environment = environment.describe(settings.device)
            return
        if not resume:
            raise InputError(f"{path} exists; go on with it by --resume, or name another file")
        found = ResultSet.read(path)
        self._refuse_other(found.runs.get(SUITE, {}))
        self._environment = found.environment
        for row in found.results:
            self._rows.setdefault(Job(row.model, row.criterion, row.seed), []).append(row)

    def _refuse_other(self, run: dict[str, Any]) -> None:
        before = run.get("settings")
        if not isinstance(before, dict):
            raise InputError(f"{self.path} is not the results file of a sweep; name another file")
        for name, value in self._settings.items():
            if before.get(name) != value:
                raise InputError(
                    f"{self.path} is a sweep with {name} {before.get(name)!r}, not {value!r}; give the same settings, "
                    "or name another file"
                )

    def left(self, jobs: Iterable[Job]) -> list[Job]:
        """The jobs that have no rows yet."""
        return [job for job in jobs if job not in self._rows]

    def wants(self, job: Job) -> bool:
        """False, and the job is `left_out`, when the jobs of its model fail all alike: the one that judges the unpruned
        model failed, or `ALIKE` others did with one sentence and none succeeded."""
        errors = [error for failed, error in self.failed.items() if failed.model == job.model]
        succeeded = any(done.model == job.model and done.criterion is not None for done in self._rows)
        alike = len(errors) >= ALIKE and len(set(errors)) == 1 and not succeeded
        if alike or Job(job.model) in self.failed:
            self.left_out.append(job)
            return False
        return True

    def failures(self, jobs: Sequence[Job]) -> str | None:
        """What failed of ``jobs``, each sentence once with the number of its jobs; None if nothing did."""
        if not self.failed:
            return None
        by_error: dict[str, list[Job]] = {}
        for job, error in self.failed.items():
            by_error.setdefault(error, []).append(job)
        lines = [
            f"{error} ({jobs[0].label}{f' and {len(jobs) - 1} more' if len(jobs) > 1 else ''})"
            for error, jobs in by_error.items()
        ]
        left_out = f", and {len(self.left_out)} that would fail alike were not run" if self.left_out else ""
        told = lines[0] if len(lines) == 1 else "\n  ".join(["", *lines])
        return f"{len(self.failed)} of {len(jobs)} jobs failed{left_out}; --resume runs them again: {told}"

    def record(self, outcome: Outcome) -> None:
        """Keep an outcome and write the file."""
        if outcome.error is None:
            self._rows[outcome.job] = list(outcome.rows)
        else:
            self.failed[outcome.job] = outcome.error
        failed = {job.label: error for job, error in self.failed.items()}
        runs = {SUITE: {"settings": self._settings, "failed": failed}}
        ResultSet(self._environment, self.rows(), runs).write(self.path)

    def rows(self, jobs: Sequence[Job] = ()) -> list[Result]:
        """All rows; those of ``jobs`` first, in their order."""
        order = dict.fromkeys((*(job for job in jobs if job in self._rows), *self._rows))
        return [row for job in order for row in self._rows[job]]

"""Verbs that measure: `evaluate`, `profile`, `bench`, `report`, `sweep`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentinel.adapt.pruning.criteria import ALL
from sentinel.adapt.text.choices import TASKS
from sentinel.adapt.text.corpora import EVERY_BUILT_IN, load_texts
from sentinel.api.model import Model, as_model, load
from sentinel.errors import InputError
from sentinel.files import check_output_folder, write_folder
from sentinel.formats.sources import LoadedModel, check_device
from sentinel.infer.engine import Engine
from sentinel.infer.opening import OpenedEngine
from sentinel.measure.evaluation import evaluate_engine
from sentinel.measure.method import random_prompts
from sentinel.measure.profiling.profile import Profile, profile_engine
from sentinel.measure.results import Result, ResultSet
from sentinel.measure.runner import run_suites
from sentinel.measure.suites import SUITES, suite_of
from sentinel.measure.sweep import SweepFile, SweepSettings, check_texts, plan_jobs
from sentinel.measure.sweep_backends import in_processes, on_ray
from sentinel.measure.zero_shot import DEFAULT_ITEMS, evaluate_task
from sentinel.models.dtypes import require_fp32
from sentinel.progress import say, track
from sentinel.report.render import REPORT_FILES, RESULTS, write_report


def evaluate(
    model: Model | str | Path,
    text: str = EVERY_BUILT_IN,
    *,
    context: int = 512,
    stride: int | None = None,
    max_tokens: int | None = None,
    teacher: Model | str | Path | None = None,
    heads: float = 0.0,
    neurons: float = 0.0,
    **engine: Any,
) -> Result:
    """Perplexity, bits per byte and variety of ``model`` on ``text`` (built-in ones: their test splits), and agreement with
    a ``teacher``. ``heads``, ``neurons`` and ``engine`` are the arguments of `Model.engine`.

    Raises `InputError` for random weights and for text that the model was calibrated or trained on.
    """
    texts = load_texts(text, "test")
    source = as_model(model)
    running = source.engine(heads=heads, neurons=neurons, **engine)
    return evaluate_engine(
        OpenedEngine(running, source.tokenizer, source.name, source.record),
        texts,
        context=context,
        stride=stride,
        max_tokens=max_tokens,
        teacher=None if teacher is None else as_model(teacher).loaded,
        width=(heads, neurons),
    )


def evaluate_tasks(
    model: Model | str | Path,
    tasks: Sequence[str] = tuple(TASKS),
    *,
    items: int = DEFAULT_ITEMS,
    heads: float = 0.0,
    neurons: float = 0.0,
    **engine: Any,
) -> list[Result]:
    """Accuracy of ``model`` on zero-shot ``tasks``, ``items`` of each, made of texts that nothing learns from.

    ``heads``, ``neurons`` and ``engine`` are the arguments of `Model.engine`. Raises `InputError` for an unknown task and
    for random weights.
    """
    source = as_model(model)
    running = source.engine(heads=heads, neurons=neurons, **engine)
    opened = OpenedEngine(running, source.tokenizer, source.name, source.record)
    return [evaluate_task(opened, name, items, (heads, neurons)) for name in tasks]


def profile(
    model: Model | str | Path, *, prompt_tokens: int = 64, new_tokens: int = 20, rounds: int = 5, **engine: Any
) -> Profile:
    """Time and memory per component of a generation from a random prompt.

    ``engine`` are the arguments of `Model.engine`; raises `InputError` as it does, and for more tokens than the context.
    """
    return profile_tokens(as_model(model).engine(**engine), prompt_tokens, new_tokens, rounds)


def profile_tokens(engine: Engine, prompt_tokens: int, new_tokens: int, rounds: int) -> Profile:
    """`profile` of an engine that is open."""
    prompt = random_prompts(engine.spec.vocab_size, 1, prompt_tokens)[0]
    return profile_engine(engine, prompt, new_tokens, rounds)


def bench(
    suite: str,
    model: Model | str | Path = "smollm2-135m",
    *,
    random_weights: int | None = None,
    quick: bool = False,
    threads: int | None = None,
    resume: ResultSet | None = None,
    keep: Callable[[ResultSet], object] = lambda _: None,
    **options: Any,
) -> ResultSet:
    """Measure one suite (`sentinel.measure.suites.SUITES`); ``options`` are fields of `sentinel.SuiteSettings`.

    ``random_weights`` is the seed that ``model`` was or is loaded with. What ``resume`` holds is not measured again, and
    ``keep`` gets all results after every pass. Raises `InputError` for an unknown suite or option, and for a model in bf16
    or fp16 where the suite computes in fp32.
    """
    run = {"threads": threads, "quick": quick, "resume": resume, "keep": keep}
    subject = _subject(model, random_weights)
    if not suite_of(suite).any_dtype:
        require_fp32(subject.loaded.decoder, f"suite {suite}")
    return _measured(subject, subject.loaded, {suite: options}, random_weights, run)


def report(
    model: Model | str | Path = "smollm2-135m",
    folder: str | Path = "report",
    *,
    random_weights: int | None = None,
    quick: bool = False,
    force: bool = False,
    threads: int | None = None,
    resume: ResultSet | None = None,
    **options: Any,
) -> ResultSet:
    """Measure ``model`` by every suite that suits it, and write HTML, Markdown and ``results.json`` to ``folder``.

    ``options`` are given to the suites that take them. What was measured is in the folder after every suite. Raises
    `InputError` for a folder that holds anything; with ``force`` an earlier report is replaced.
    """
    place = check_output_folder(folder, force, REPORT_FILES)
    replace = force

    def keep(results: ResultSet) -> None:
        nonlocal replace
        with write_folder(place, replace) as temporary:
            results.write(temporary / RESULTS)
        replace = True

    subject = _subject(model, random_weights)
    given = {"expand_kv": True, **options}
    run = {"threads": threads, "quick": quick, "resume": resume, "keep": keep}
    found = _measured(subject, subject.loaded.in_fp32(), _suites_for(subject, given), random_weights, run)
    write_report(found, place, replace)
    return found


def _suites_for(model: Model, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The suites of a report on ``model``, each with those of ``options`` that it takes."""
    judged = model.weights == "real" and model.tokenizer is not None
    return {
        suite.name: {name: value for name, value in options.items() if name in suite.options}
        for suite in SUITES.values()
        if suite.in_report and (judged or not suite.needs_text)
    }


def _subject(model: Model | str | Path, random_weights: int | None) -> Model:
    """What is measured; some suites start processes of their own, which load it again by its name."""
    found = model if isinstance(model, Model) else load(model, random_weights=random_weights)
    if found.source is None:
        raise InputError(f"{found.name} is in memory only; save it and load it from there, to measure it")
    return found


def _measured(
    model: Model,
    loaded: LoadedModel,
    suites: Mapping[str, Mapping[str, Any]],
    random_weights: int | None,
    run: Mapping[str, Any],
) -> ResultSet:
    assert model.source is not None
    return run_suites(loaded, suites, source=model.source, random_weights=random_weights, **run)


@dataclass(frozen=True)
class Swept:
    """The rows of a sweep, and a sentence on the jobs that failed, None where none did."""

    rows: list[Result]
    failures: str | None


def sweep(
    models: Sequence[str],
    file: str | Path,
    settings: SweepSettings,
    *,
    criteria: Sequence[str] = ALL,
    seeds: Sequence[int] = (0,),
    workers: int = 2,
    backend: str = "processes",
    address: str | None = None,
    resume: bool = False,
) -> Swept:
    """Quality over ``models`` x ``criteria`` x ``seeds`` x the levels of ``settings``, in ``workers`` jobs at a time.

    They are processes on this machine, or with ``backend`` "ray" on a cluster (``address``, or one that is started here).

    ``file`` is written after every job, and ``resume`` goes on with it. Raises `InputError` for a file that stands there
    without ``resume``, unknown criteria, and text that calibration and evaluation share.
    """
    if address is not None and backend != "ray":
        raise InputError("an address is of a Ray cluster; take the backend ray as well")
    jobs = plan_jobs(models, criteria, seeds)
    found = SweepFile(Path(file), settings, resume=resume)
    left = found.left(jobs)
    if len(left) < len(jobs):
        say(f"{len(jobs) - len(left)} of {len(jobs)} jobs are done already")
    if left:
        check_texts(settings)
        if backend == "processes":
            check_device(settings.device)
        if backend == "ray":
            outcomes = on_ray(left, settings, workers, address, found.wants)
        else:
            outcomes = in_processes(left, settings, workers, found.wants)
        for outcome in track(outcomes, "Sweeping", len(left)):
            found.record(outcome)
            say(f"{outcome.job.label}: {'failed' if outcome.error else f'{len(outcome.rows)} rows'}")
    return Swept(found.rows(jobs), found.failures(jobs))

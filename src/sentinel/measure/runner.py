"""Runs suites on one model, one after another in as many passes as they ask for, and goes on with an earlier run."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sentinel.adapt.text.corpora import load_texts, refuse_seen_text
from sentinel.errors import InputError
from sentinel.formats.sources import LoadedModel
from sentinel.measure import environment
from sentinel.measure.results import Environment, ResultSet
from sentinel.measure.suites import suite_of
from sentinel.measure.suites.engines import Engines
from sentinel.measure.suites.request import Request, SuiteSettings, settings_of
from sentinel.models.fingerprint import weights_fingerprint
from sentinel.progress import say, track


def run_suites(
    loaded: LoadedModel,
    suites: Mapping[str, Mapping[str, Any]],
    *,
    source: str,
    random_weights: int | None = None,
    threads: int | None = None,
    quick: bool = False,
    resume: ResultSet | None = None,
    keep: Callable[[ResultSet], object] = lambda _: None,
) -> ResultSet:
    """Measure ``suites``: by name, the options given for each; what is not given is the suite's own.

    ``source`` and ``random_weights`` say how a process of its own loads the model again. What ``resume`` holds is not
    measured again. ``keep`` gets all results after every pass of a suite, so that an interrupted run loses only the last
    one. Raises `InputError` for an unknown suite, an option that a suite does not take, a model that it can't measure, and
    a ``resume`` of something else, and text that the model has seen.
    """
    settings = _settings(suites, quick)
    _refuse_seen_text(loaded, settings)
    fingerprint = weights_fingerprint(loaded.decoder)
    runs = {name: _record(loaded, fingerprint, chosen) for name, chosen in settings.items()}
    before = environment.processor_time()
    place = environment.describe(str(loaded.decoder.device))
    found = ResultSet(place, []) if resume is None else _continued(resume, place, runs)
    engines = Engines(loaded, threads)
    turns = _turns({name: chosen.passes for name, chosen in settings.items()})
    left = [(name, number) for name, number in turns if number > found.passes_of(name)]
    if len(left) < len(turns):
        say(f"{len(turns) - len(left)} of {len(turns)} parts are there already")
    ran: set[str] = set()  # in this process
    after_other = True  # other work than that of these engines, which leaves the machine in another state
    for count, (name, number) in enumerate(track(left, "Suites", len(left)) if len(left) > 1 else left, 1):
        passes = settings[name].passes
        what = f"suite {name}{f', pass {number} of {passes}' if passes > 1 else ''}"
        if len(left) > 1:
            say(f"{what} ({count} of {len(left)})")
        start = time.monotonic()
        earlier = {row.key: row for row in found.results if row.suite == name}
        request = Request(
            loaded,
            source,
            random_weights,
            engines,
            settings[name],
            given=frozenset(suites[name]),
            number=number,
            earlier=earlier,
            warm_up=after_other or name not in ran,
            cache_mb=found.environment.last_level_cache_mb,
        )
        rows = suite_of(name).run(request)
        others = [row for row in found.results if row.suite != name]
        found = ResultSet(_at_end(found.environment, before), [*others, *rows], {**found.runs, name: runs[name]})
        keep(found)
        ran.add(name)
        after_other = passes == 1
        if len(left) > 1:
            say(f"{what} took {time.monotonic() - start:.0f} s")
    return found


def _settings(suites: Mapping[str, Mapping[str, Any]], quick: bool) -> dict[str, SuiteSettings]:
    """Every suite's settings; of several in a full run with the passes that the suites ask for."""
    settings = {name: settings_of(suite_of(name), given, quick=quick) for name, given in suites.items()}
    if len(suites) == 1 or quick:
        return settings
    return {name: replace(s, passes=min(suite_of(name).passes, s.rounds)) for name, s in settings.items()}


def _refuse_seen_text(loaded: LoadedModel, settings: Mapping[str, SuiteSettings]) -> None:
    """Refuse text that the model has seen before anything is measured; the suites that judge would refuse it later."""
    if loaded.weights == "random" or loaded.tokenizer is None or not loaded.record.seen_documents():
        return
    for name, chosen in settings.items():
        options = suite_of(name).options
        if "text" in options and ("recovery_steps" not in options or chosen.recovery_steps):
            refuse_seen_text(loaded.record, load_texts(chosen.text, "test"))


def _turns(passes: Mapping[str, int]) -> list[tuple[str, int]]:
    """Suites and the numbers of their passes, in the order in which they are measured.

    A machine that others use drifts within minutes, by more than rounds in a row tell. So suites of a single pass, which
    are the long ones, stand between the passes of the others.
    """
    once = [name for name, number in passes.items() if number == 1]
    last = max(passes.values(), default=1)
    gaps = max(1, last - 1)
    turns: list[tuple[str, int]] = []
    for number in range(1, last + 1):
        turns += [(name, number) for name, of in passes.items() if of > 1 and number <= of]
        turns += [(name, 1) for name in once[len(once) * (number - 1) // gaps : len(once) * number // gaps]]
    return turns


def _record(loaded: LoadedModel, fingerprint: str, settings: SuiteSettings) -> dict[str, Any]:
    """What a suite's rows were measured with, as JSON has it."""
    chosen = json.loads(json.dumps(dataclasses.asdict(settings)))
    return {"model": loaded.name, "weights": loaded.weights, "fingerprint": fingerprint, **chosen}


def _continued(resume: ResultSet, place: Environment, runs: Mapping[str, Mapping[str, Any]]) -> ResultSet:
    """``resume``, if it was measured here and as the new run would measure."""
    differences = resume.environment.differences(place)
    if differences:
        raise InputError(f"the earlier run can't go on, its environment was another ({differences[0]}); measure anew")
    for name, run in runs.items():
        earlier = resume.runs.get(name)
        changed = [] if earlier is None else sorted(k for k in {*run, *earlier} if run.get(k) != earlier.get(k))
        if earlier is not None and changed:
            key = changed[0]
            raise InputError(
                f"the earlier run can't go on: its suite {name} had {key} {earlier.get(key)}, not {run.get(key)}; give the "
                "same model and options, or measure anew"
            )
    return resume


def _at_end(place: Environment, before: environment.ProcessorTime | None) -> Environment:
    """The environment with what happened to it meanwhile; of a run that went on, the larger steal."""
    stolen = [s for s in (place.steal, environment.steal_share(before, environment.processor_time())) if s is not None]
    mhz = environment.frequency_mhz()
    started = (place.cpu_mhz or ())[:1]
    return replace(place, steal=max(stolen, default=None), cpu_mhz=None if mhz is None else (*started, mhz))

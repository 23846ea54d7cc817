"""Runs suites one after another on one model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sentinel.measure import environment
from sentinel.measure.results import Result, ResultSet
from sentinel.measure.suites import suite_of
from sentinel.measure.suites.engines import Engines
from sentinel.measure.suites.request import Request, settings_of
from sentinel.models.sources import LoadedModel
from sentinel.progress import say


def run_suites(
    loaded: LoadedModel,
    suites: Mapping[str, Mapping[str, Any]],
    *,
    source: str,
    random_weights: int | None = None,
    threads: int | None = None,
    quick: bool = False,
) -> ResultSet:
    """Measure ``suites``: by name, the options given for each; what is not given is the suite's own.

    ``source`` and ``random_weights`` say how a process of its own loads the model again. Raises `InputError` for an unknown
    suite, an option that a suite does not take, and a model that it can't measure.
    """
    settings = {name: settings_of(suite_of(name), given, quick=quick) for name, given in suites.items()}
    place = environment.describe(str(loaded.decoder.device))
    engines = Engines(loaded, threads)
    results: list[Result] = []
    for number, name in enumerate(suites, 1):
        if len(suites) > 1:
            say(f"suite {name} ({number} of {len(suites)})")
        request = Request(
            loaded, source, random_weights, place.bandwidth_gb_s, engines, settings[name], frozenset(suites[name])
        )
        results += suite_of(name).run(request)
    return ResultSet(place, results)

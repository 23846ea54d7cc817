"""The model that a pruned one was made from, measured beside it: what of the removed bytes is saved in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sentinel.errors import InputError
from sentinel.formats.sources import LoadedModel, load
from sentinel.measure.results import PRUNED, UNPRUNED, Result, speedup
from sentinel.measure.suites.request import Request
from sentinel.models.record import Adapted, Pruned, Record
from sentinel.progress import say


def unpruned_of(request: Request) -> LoadedModel | None:
    """The model that the request's was pruned from: the one that its settings name, else its record.

    None for a model that was not pruned, and, which is said, where the record's can't be loaded. Raises `InputError` for
    one that the settings name and that can't be loaded or has other tokens.
    """
    given, loaded = request.settings.unpruned, request.loaded
    source = given or (None if loaded.decoder.widths else _source(loaded.record))  # an elastic model is measured whole
    if source is None:
        return None
    try:
        found = load(source, random_weights=request.random_weights)
        ours, theirs = loaded.spec.vocab_size, found.spec.vocab_size
        if ours != theirs:
            raise InputError(f"{source} has {theirs} tokens, and {loaded.name} {ours}: name what it was made from")
    except InputError as error:
        if given is not None:
            raise
        say(f"the model before pruning is not measured beside it; name it by --unpruned MODEL: {error}")
        return None
    return found


def _source(record: Record) -> str | None:
    """What the first step that removed something started from."""
    return next((step.source for step in record.steps if isinstance(step, (Pruned, Adapted))), None)


def with_saving(pruned: Result, unpruned: Result) -> Result:
    """The ``pruned`` row of an engine with the share of time per token saved over the share of bytes removed; without one
    where nothing was removed. The two were measured in turn."""
    before, after = unpruned.weight_bytes_per_token, pruned.weight_bytes_per_token
    if not before or after is None or after >= before:
        return pruned
    removed = 1 - after / before
    faster = speedup(unpruned.samples, pruned.samples, "tpot_ms", pruned.passes or 1)
    low, high = (None if end is None else (1 - 1 / end) / removed for end in (faster.low, faster.high))
    return replace(
        pruned,
        saved_over_removed=(1 - 1 / faster.value) / removed,
        saved_over_removed_low=low,
        saved_over_removed_high=high,
    )


def beside_unpruned(pruned: Sequence[Result], unpruned: Sequence[Result]) -> list[Result]:
    """Every ``pruned`` row, and after it that of the same engine with the unpruned model, if there is one."""
    twins = {row.engine: replace(row, configuration=UNPRUNED) for row in unpruned}
    rows: list[Result] = []
    for row in pruned:
        twin = twins.pop(row.engine, None)
        found = replace(row, configuration=PRUNED)
        rows += [found] if twin is None else [with_saving(found, twin), twin]
    return [*rows, *twins.values()]

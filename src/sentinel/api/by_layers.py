"""Pruning of a stored model that is larger than memory, from its name to a folder."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from sentinel.adapt.pruning.by_layers import order_by_layers, require_by_layers, write_by_layers
from sentinel.adapt.pruning.by_layers_memory import Need, need_by_layers, within
from sentinel.adapt.pruning.prune import PruningSettings
from sentinel.adapt.pruning.room import BATCH, Room
from sentinel.errors import InputError
from sentinel.files import write_folder
from sentinel.formats.sources import StoredModel
from sentinel.infer.calibration_text import split_own, stored_windows
from sentinel.measure.memory import peak_rss_mb, reset_peak
from sentinel.models.record import Pruned
from sentinel.models.spec import ModelSpec
from sentinel.progress import say


@dataclass(frozen=True)
class PrunedByLayers:
    """What was made, and what it took: megabytes predicted and measured, and seconds."""

    spec: ModelSpec
    predicted_mb: float
    peak_mb: float
    seconds: float


def prune_by_layers(
    model: StoredModel,
    output: str | Path,
    *,
    heads: float,
    neurons: float,
    max_ram: float,
    calibration: str,
    settings: PruningSettings,
    force: bool = False,
) -> PrunedByLayers:
    """Write to ``output`` the model without those ratios of heads and neurons, in ``max_ram`` MB of memory.

    ``calibration`` names texts other than the model's own. Raises `InputError` for a criterion that needs gradients, and
    where the memory is not enough.
    """
    if settings.needs_text and split_own(calibration)[0]:
        raise InputError(
            "with --max-ram the model can't write its calibration text itself; name a text by --calibration"
        )
    windows = stored_windows(model, calibration, settings.tokens, settings.seed) if settings.needs_text else None
    tokens = None if windows is None else windows.tokens
    ranking = require_by_layers(model.spec, settings, tokens)
    reset_peak()
    program, shape = peak_rss_mb(), (0, 0) if tokens is None else (tokens.shape[0], tokens.shape[1])

    def need(spilled: bool, batch: int) -> Need:
        told = {"compensate": settings.compensate, "spilled": spilled, "batch": batch}
        return need_by_layers(model.spec, ranking, (heads, neurons), shape, **told)

    narrower = [need(True, BATCH), need(True, 1)]
    chosen = within(need(False, BATCH), narrower, round(max_ram * 1e6), round(program * 1e6))
    predicted = program + chosen.n_byte / 1e6
    told = ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in chosen.parts.items())
    where = "in files" if chosen.spilled else "in memory"
    say(f"layer by layer, predicted {predicted:,.0f} MB: program {program:,.0f}, {told}; streams are {where}")
    started = time.monotonic()
    with write_folder(output, force) as folder:
        room = Room(folder if chosen.spilled else None, chosen.batch)
        order = order_by_layers(model.stored, settings, tokens, heads, neurons, room)
        step = Pruned(
            source=model.name,
            texts=calibration if windows is not None else "",
            documents=() if windows is None else windows.fingerprints,
            criterion=order.criterion,
            heads=(heads,),
            neurons=(neurons,),
            compensated=settings.compensate,
            tokens=0 if tokens is None else tokens.numel(),
            removal_ranks=tuple(tuple(int(rank) for rank in layer) for layer in order.group_ranks),
        )
        spec = write_by_layers(
            model.stored, order.plan(heads, neurons), tokens if settings.compensate else None, folder,
            tokenizer=model.tokenizer, record=model.record.then(step), room=room,
        )  # fmt: skip
    return PrunedByLayers(spec, predicted, peak_rss_mb(), time.monotonic() - started)

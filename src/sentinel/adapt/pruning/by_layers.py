"""Pruning of a model that is larger than memory: one half of one layer at a time is read, pruned, re-solved and written.

Two passes over the stored weights: the first ranks, the second removes and compensates. In memory are at most one half of a
layer in fp32 and one of its tensors more, the matrices of its least-squares problem, the activations of one batch, and the
streams of the calibration text, which a `Room` keeps in files. Results are those of `Pruner` by the same criterion.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from sentinel.adapt.pruning import criteria
from sentinel.adapt.pruning.compact import with_output_biases
from sentinel.adapt.pruning.compensate import resolve
from sentinel.adapt.pruning.criterion import HalfCriterion
from sentinel.adapt.pruning.gram_matrices import gram_of
from sentinel.adapt.pruning.half_held import PIECE, HalfHeld
from sentinel.adapt.pruning.half_layer import HalfLayer, half_tensors
from sentinel.adapt.pruning.plan import PruningPlan, RemovalOrder
from sentinel.adapt.pruning.prune import PruningSettings
from sentinel.adapt.pruning.residual_stream import HALVES, Stream
from sentinel.adapt.pruning.room import IN_MEMORY, Room
from sentinel.adapt.pruning.scores import removal_order
from sentinel.errors import InputError
from sentinel.formats.checkpoint import checkpoint_config
from sentinel.formats.piecewise import PiecewiseFile
from sentinel.formats.stored import StoredWeights
from sentinel.models.parts.block import Half
from sentinel.models.record import Record
from sentinel.models.spec import ModelSpec
from sentinel.models.tensors import taken, tensors_of
from sentinel.models.tokenizer import TextTokenizer
from sentinel.progress import track


def ranking_by_halves(settings: PruningSettings) -> HalfCriterion:
    """The criterion of ``settings``; `InputError` that names those that work layer by layer for another."""
    ranking = settings.ranking
    if not isinstance(ranking, HalfCriterion):
        known = [name for name in criteria.NAMES if isinstance(criteria.criterion_named(name), HalfCriterion)]
        raise InputError(
            f"criterion {settings.criterion} needs the whole model in memory; layer by layer there are {', '.join(known)}"
        )
    return ranking


def require_by_layers(spec: ModelSpec, settings: PruningSettings, windows: Tensor | None) -> HalfCriterion:
    """Raise `InputError` unless a model can be pruned layer by layer; the criterion."""
    ranking = ranking_by_halves(settings)
    if spec.integration is not None:
        raise InputError("a model with skips or a baseline is not pruned layer by layer; take them out first")
    if windows is None and settings.needs_text:
        raise InputError(f"criterion {settings.criterion} and compensation need calibration text")
    if settings.compensate and windows is not None and len(windows) < 2:
        raise InputError("compensation needs at least two windows of calibration text; give more text")
    return ranking


@torch.no_grad()
def order_by_layers(
    stored: StoredWeights,
    settings: PruningSettings,
    windows: Tensor | None,
    heads: float,
    neurons: float,
    room: Room = IN_MEMORY,
) -> RemovalOrder:
    """The removal order of a stored model, by one pass over its layers; ``windows`` [windows, T] are calibration tokens."""
    spec, ranking = stored.spec, require_by_layers(stored.spec, settings, windows)
    dense = HalfHeld.of(stored)
    stream = Stream(dense, windows, room) if windows is not None and ranking.needs_text else None

    def parts() -> Iterator[HalfLayer]:
        for index in track(range(spec.n_layer), f"Ranking by {ranking.name}", spec.n_layer):
            for half in HALVES:
                gram = None if stream is None else _advanced(stream, index, half, ranking.reads(half, heads, neurons))
                dense.block(index, half)
                yield HalfLayer(spec, index, half, dense.taken(), gram, settings.seed)

    scores = ranking.gathered(parts(), heads, neurons)
    floors = {"floor_groups": settings.floor_groups, "floor_neurons": settings.floor_neurons}
    return removal_order(spec, scores, scope=settings.scope, **floors)


def _advanced(stream: Stream, index: int, half: Half, wanted: bool) -> Tensor | None:
    """The stream goes on by a half layer; the Gram matrix of what its output projection read, if it is ``wanted``."""
    total: Tensor | None = None

    def add(inputs: Tensor) -> None:
        nonlocal total
        part = gram_of(inputs.flatten(0, 1))
        total = part if total is None else total.add_(part)

    stream.advance(index, half, add if wanted else None)
    return total


@torch.no_grad()
def write_by_layers(
    stored: StoredWeights,
    plan: PruningPlan,
    windows: Tensor | None,
    folder: Path,
    *,
    tokenizer: TextTokenizer | None,
    record: Record,
    room: Room = IN_MEMORY,
) -> ModelSpec:
    """Write to ``folder``, which is to become a checkpoint, what ``plan`` keeps of a stored model; its specification.

    With ``windows`` [windows, T] the output projections are re-solved on them, as `compensate` does.
    """
    plan.check(stored.spec)
    spec = plan.width.of(stored.spec)
    spec = spec if windows is None else with_output_biases(spec)
    dense, student = HalfHeld.of(stored), HalfHeld.of(stored, spec)
    streams = None if windows is None else (Stream(dense, windows, room), Stream(student, windows, room))
    shapes = {tensor.name: tensor.shape for tensor in tensors_of(spec)}
    with PiecewiseFile(folder / "model.safetensors", shapes) as file:
        _write_ends(stored, spec, file)
        for index in track(range(spec.n_layer), "Pruning layers", spec.n_layer):
            for half in HALVES:
                if streams is not None:
                    streams[0].advance(index, half)
                dense.block(index, half)
                student.put(index, half, _pruned_half(stored, spec, plan, index, half, dense.taken()))
                if streams is not None:
                    resolve(streams[1], streams[0], index, half)
                for name, tensor in student.taken().items():
                    file.put(name, tensor)
    if tokenizer is not None:
        tokenizer.copy_files(folder)
    config = checkpoint_config(spec, torch.float32, tokenizer, record)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return spec


def _pruned_half(
    stored: StoredWeights, spec: ModelSpec, plan: PruningPlan, index: int, half: Half, state: dict[str, Tensor]
) -> dict[str, Tensor]:
    """What is kept of a half layer's ``state``, which is emptied, tensor by tensor; biases that it lacks are 0."""
    known = {tensor.name: tensor for tensor in half_tensors(stored.spec, index, half)}
    found: dict[str, Tensor] = {}
    for tensor in half_tensors(spec, index, half):
        name = tensor.name
        found[name] = taken(state.pop(name), known[name], plan.kept) if name in state else torch.zeros(tensor.shape)
    return found


def _write_ends(stored: StoredWeights, spec: ModelSpec, file: PiecewiseFile) -> None:
    """Write what is in no layer, some rows at a time."""
    state = stored.whole_state()
    for tensor in tensors_of(spec):
        if not tensor.name.startswith("layers."):
            rows, *row = tensor.shape
            step = max(1, PIECE // math.prod(row))
            for start in range(0, rows, step):
                file.put(tensor.name, state[tensor.name][start : start + step])

"""Verbs that make another model at once: `prune`, `quantize`, `integrate`; and `importance`, which only tells."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from sentinel.adapt.integration import DEFAULT_RANK, configuration_of
from sentinel.adapt.integration import integrate as integrate_decoder
from sentinel.adapt.pruning.compact import expand_kv as with_expanded_kv
from sentinel.adapt.pruning.fit_to import MOST_HEADS, MOST_NEURONS, fit_to, megabytes
from sentinel.adapt.pruning.plan import PruningPlan, RemovalOrder
from sentinel.adapt.pruning.prune import Pruner, PruningSettings, make_elastic
from sentinel.adapt.text.corpora import load_texts, refuse_seen_text
from sentinel.api.model import Model, as_model
from sentinel.errors import InputError
from sentinel.formats.sources import LoadedModel, StoredModel, open_stored
from sentinel.infer import calibration_text
from sentinel.infer.native import Precision
from sentinel.infer.quantise import DEFAULT_TOKENS, calibration_windows, can_calibrate, quantise
from sentinel.infer.quantised import QuantisedModel
from sentinel.measure.decode_speed import measure_plan_cost
from sentinel.models.decoder import Decoder
from sentinel.models.record import SELF, Integrated, Quantised

SPEEDUP_PRECISIONS = ("int8", "int4", "fp32")  # at level 3, and at level 2


def prune(
    model: Model | str | Path,
    *,
    heads: float = 0.0,
    neurons: float = 0.0,
    elastic: Sequence[float] | None = None,
    speedup: float | None = None,
    speedup_precision: str = "int8",
    max_memory: float | None = None,
    expand_kv: bool = False,
    calibration: str = SELF,
    judged_by: str | None = None,
    settings: PruningSettings | None = None,
) -> Model:
    """A model from which heads and neurons are really removed, the rest re-solved to make up for them.

    Say what to remove by one of: the ratios ``heads`` and ``neurons``; ``elastic``, ratios of heads that one model stores
    and switches at run time; ``speedup``, times as many tokens a second as the model as loaded, measured here at level 3 in
    ``speedup_precision`` (int8, int4; fp32 is level 2); ``max_memory``, MB of fp32 weights.
    ``expand_kv`` repeats grouped keys and values first, so that every head stands alone, which makes the model larger
    before it gets smaller. ``calibration`` names texts, ``self`` being text that the model writes itself; none of those of
    ``judged_by`` may be among them. Criterion, amounts and seed are in ``settings``.

    Raises `InputError` for ratios outside of 0..1, a target that can't be met, and text that the model has seen.
    """
    loaded, settings = as_model(model).loaded.in_fp32(), settings or PruningSettings()
    check_targets(heads, neurons, elastic, speedup, max_memory)
    check_speedup_precision(speedup_precision)
    dense = with_expanded_kv(loaded.decoder) if expand_kv else loaded.decoder
    pruner = make_pruner(loaded, dense, settings, calibration, judged_by)
    if elastic is not None:
        order = pruner.order(max(elastic), 0.0)
        plans = [order.plan(ratio) for ratio in sorted(set(elastic)) if ratio > 0]
    elif heads or neurons:
        order = pruner.order(heads, neurons)
        plans = [order.plan(heads, neurons)]
    else:
        order, plan = _fitted(pruner, loaded, speedup, speedup_precision, max_memory)
        plans = [plan]
    models = pruner.apply(plans)
    made = make_elastic(dense, order, plans, models) if elastic is not None else models[0]
    expanded = dense is not loaded.decoder
    step = pruner.step(loaded.name, order, plans, texts=calibration, elastic=elastic is not None, expanded_kv=expanded)
    return Model(dataclasses.replace(loaded, decoder=made, record=loaded.record.then(step)))


def check_targets(
    heads: float,
    neurons: float,
    elastic: Sequence[float] | None,
    speedup: float | None,
    max_memory: float | None,
) -> None:
    """Raise `InputError` unless one way of saying what to remove is taken."""
    targets = [speedup, max_memory, elastic]
    if sum(target is not None for target in targets) + bool(heads or neurons) != 1:
        raise InputError("say what to remove by one of: heads and neurons, speedup, max_memory, elastic")
    if speedup is not None and speedup <= 1:
        raise InputError(f"the speed-up must be above 1, not {speedup:g}")


def make_pruner(
    loaded: LoadedModel, dense: Decoder, settings: PruningSettings, calibration: str, judged_by: str | None = None
) -> Pruner:
    """A pruner of ``dense`` with calibration windows, if the settings need any; none of ``judged_by`` is among them."""
    judges = [] if judged_by is None or loaded.weights == "random" else load_texts(judged_by, "test")
    refuse_seen_text(loaded.record, judges)
    if judges:
        loaded.require_tokenizer()  # refused now, not when the result is to be judged
    if not settings.needs_text:
        return Pruner(dense, settings, None)
    windows = calibration_text.calibration_windows(
        loaded, calibration, settings.tokens, seed=settings.seed, judges=judges
    )
    return Pruner(dense, settings, windows)


def check_speedup_precision(precision: str) -> None:
    """Raise `InputError` unless speed can be measured in ``precision``."""
    if precision not in SPEEDUP_PRECISIONS:
        raise InputError(f"a speed-up is measured in {', '.join(SPEEDUP_PRECISIONS)}, not in {precision!r}")


def _fitted(
    pruner: Pruner, loaded: LoadedModel, speedup: float | None, precision: str, max_memory: float | None
) -> tuple[RemovalOrder, PruningPlan]:
    """The removal order and the plan that meets a target, which is told against the model as loaded."""
    if speedup is not None:
        neurons = MOST_NEURONS if pruner.settings.ranking.scores_neurons else 0.0
        cost, whole = measure_plan_cost(loaded, pruner.dense, precision, (MOST_HEADS, neurons))
        return fit_to(pruner, cost, whole / speedup)
    assert max_memory is not None
    size = loaded.spec.parameter_count() * 4 / 1e6
    if max_memory >= size:
        raise InputError(
            f"a memory of {max_memory:g} MB is not below the {size:,.1f} MB of {loaded.name}; ask for less"
        )
    return fit_to(pruner, megabytes(pruner), max_memory)


def importance(
    model: Model | str | Path,
    *,
    expand_kv: bool = False,
    calibration: str = SELF,
    settings: PruningSettings | None = None,
) -> RemovalOrder:
    """The order in which heads would be removed, as ranks [groups] per layer: the higher, the later.

    Raises `InputError` for random weights, whose heads are worth nothing.
    """
    loaded = as_model(model).loaded.in_fp32()
    loaded.require_real_weights("the importance of its heads")
    dense = with_expanded_kv(loaded.decoder) if expand_kv else loaded.decoder
    chosen = dataclasses.replace(settings or PruningSettings(), compensate=False)
    return make_pruner(loaded, dense, chosen, calibration).order(0.9, 0.0)


def quantize(
    model: Model | StoredModel | str | Path,
    precision: str = "int8",
    *,
    heads: float = 0.0,
    neurons: float = 0.0,
    calibration: str | None = SELF,
    calibration_tokens: int = DEFAULT_TOKENS,
) -> Model:
    """A model of packed int8 or int4 weights, which level 3 runs without torch.

    int4 rounds on ``calibration`` text (GPTQ), by default the model's own; None rounds each weight for itself; int8 needs
    none. ``heads`` and
    ``neurons`` keep that stored width of an elastic model alone; without them all stored widths stay.

    A model that is named, or opened by `sources.open_stored`, is read tensor by tensor: memory is taken by the packed
    weights alone. Calibration and a single width take the whole model in fp32 beside them.
    """

    if precision not in ("int8", "int4"):
        raise InputError(f"precision {precision!r} is not known; it is int8 or int4")
    given = model.loaded if isinstance(model, Model) else model
    if not isinstance(given, (LoadedModel, StoredModel)):
        given = open_stored(str(given))
    texts = calibration if precision == "int4" and calibration is not None and can_calibrate(given) else None
    windows, source = None, given.stored if isinstance(given, StoredModel) else given.decoder
    if texts is not None or heads or neurons:
        loaded = given.load() if isinstance(given, StoredModel) else given
        if texts is not None:
            windows = calibration_windows(loaded, texts, calibration_tokens)
            loaded = loaded.in_fp32()  # the sums of products over text are its own
        source = loaded.decoder.at_width(heads, neurons) if heads or neurons else loaded.decoder
    native, widths = quantise(source, cast(Precision, precision), windows)
    step = Quantised(
        source=given.name,
        precision=precision,
        heads=heads,
        neurons=neurons,
        texts=texts or "",
        tokens=0 if windows is None else windows.tokens.numel(),
        documents=() if windows is None else windows.fingerprints,
        own_text={} if windows is None else dict(windows.own_text),
    )
    record = given.record.then(step)
    return Model(QuantisedModel(given.name, native, given.tokenizer, record, widths, description=given.description))


def integrate(
    model: Model | str | Path,
    configuration: str = "all",
    *,
    rank: int | None = DEFAULT_RANK,
    baseline: Model | str | Path | None = None,
) -> Model:
    """A model with U-Net skips and baseline integration as an exact identity, to be trained; or without them.

    ``configuration`` is all, no-baseline (skips), no-unet (baseline), minimal or original (neither). ``rank`` is that of
    the fusions, None for full. ``baseline`` is the unpruned model, by default ``model`` as it is.
    """
    wanted = configuration_of(configuration)
    if baseline is not None and not wanted.baseline:
        raise InputError(f"configuration {wanted.name} has no baseline; leave out the baseline")
    loaded = as_model(model).loaded.in_fp32()
    other = loaded if baseline is None else as_model(baseline).loaded.in_fp32()
    made = integrate_decoder(
        loaded.decoder, wanted.name, rank=rank, baseline=None if baseline is None else other.decoder
    )
    step = Integrated(
        source=loaded.name,
        configuration=wanted.name,
        rank=rank,
        baseline=other.name if wanted.baseline else None,
        others_seen=tuple(sorted(other.record.seen_documents())) if wanted.baseline else (),
    )
    return Model(dataclasses.replace(loaded, decoder=made, record=loaded.record.then(step)))

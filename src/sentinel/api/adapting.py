"""`adapt`: cycles of pruning, measuring, regrowth and learning, down to a budget."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sentinel.adapt.cycles.adaptation import FILE, WEIGHTS, is_state, read_state, write_state
from sentinel.adapt.cycles.budget import (
    Budget,
    CostTable,
    Unit,
    budget_unit,
    costs_by_layer,
    make_budget,
    share_costs,
    size_costs,
)
from sentinel.adapt.cycles.controller import Controller, ControllerSettings
from sentinel.adapt.pruning.compact import expand_kv as with_expanded_kv
from sentinel.adapt.pruning.compact import with_output_biases
from sentinel.adapt.pruning.gated_model import short_windows
from sentinel.adapt.recovery.state import identity_of
from sentinel.api.model import Model, as_model
from sentinel.errors import InputError
from sentinel.files import check_output_folder, remove_written, write_into
from sentinel.formats.checkpoint import save_checkpoint
from sentinel.formats.folder import MODEL_FILES
from sentinel.formats.sources import LoadedModel
from sentinel.infer.training_text import training_windows
from sentinel.measure.latency import measure_latencies
from sentinel.models.decoder import Decoder
from sentinel.models.record import SELF, Adapted
from sentinel.models.width import Width

TRAIN_LENGTH = 256  # tokens of a training window; pruning and held-out text take twice as many


@dataclass(frozen=True)
class AdaptationText:
    """What an adaptation reads: ``tokens`` of ``text``, ``calibration_tokens`` of them to prune by, and held-out ones."""

    text: str = SELF
    held_out: str | None = None
    tokens: int = 524_288
    held_out_tokens: int = 8192
    calibration_tokens: int = 24_576


@dataclass(frozen=True)
class Task:
    """A model to adapt: ``dense`` is what is pruned, with grouped K/V repeated if asked for, down to ``budget``."""

    loaded: LoadedModel
    dense: Decoder
    budget: Budget
    asked: str
    text: AdaptationText
    latencies: CostTable | None

    def windows(self, seed: int) -> tuple[tuple[Tensor, Tensor, Tensor], Adapted]:
        """Calibration, training and held-out windows, and what the record will say of an adaptation by them."""
        said, length = self.text, min(2 * TRAIN_LENGTH, self.loaded.spec.max_seq_len)
        train, held_out = training_windows(
            (self.loaded,), said.text, said.held_out, said.tokens, said.held_out_tokens, length, seed
        )
        needed = max(2, said.calibration_tokens // length)
        if len(train.tokens) < needed:
            raise InputError(
                f"--tokens {said.tokens} are fewer than the calibration needs, {needed * length}; ask for more"
            )
        step = Adapted(
            source=self.loaded.name,
            budget=self.asked,
            texts=said.text,
            documents=train.fingerprints,
            own_text=dict(train.own_text),
            held_out=held_out.fingerprints,
            expanded_kv=self.dense is not self.loaded.decoder,
        )
        return (train.tokens[:needed], short_windows(train.tokens, TRAIN_LENGTH), held_out.tokens), step

    def controller(
        self, windows: tuple[Tensor, Tensor, Tensor], settings: ControllerSettings, *, timed: bool = True
    ) -> Controller:
        """A controller, which knows by what model and text it was made; ``timed`` ones predict each cycle's latency."""
        return Controller(
            self.dense,
            *windows,
            self.budget,
            settings,
            latencies=self.latencies if timed else None,
            name=self.loaded.name,
            identity=identity_of((self.dense,), windows, ""),
        )


def task_of(
    loaded: LoadedModel,
    budget: str,
    text: AdaptationText,
    *,
    expand_kv: bool = False,
    floor_heads: int = 0,
    latencies: CostTable | None = None,
    limit: float | None = None,
) -> Task:
    """What is to be done. ``latencies`` and ``limit`` are those of a run that goes on, which measures nothing again."""
    unit = budget_unit(budget)
    loaded.require_real_weights("what its heads are worth")
    dense = with_expanded_kv(loaded.decoder) if expand_kv else loaded.decoder
    again = latencies is not None
    latencies = latencies or measured_latencies(dense)
    spec = with_output_biases(dense.spec)  # as compensation adds them
    costs: dict[Unit, CostTable] = {"heads": share_costs(spec), "MB": size_costs(spec), "ms": latencies}
    # Costs of the model as loaded, where those of the model that is pruned are others.
    whole: dict[Unit, float] = {"MB": loaded.spec.parameter_count() * 4 / 1e6}
    if unit == "ms" and dense is not loaded.decoder and not again:
        whole["ms"] = measure_latencies(loaded.decoder).dense_ms
    made = make_budget(budget, costs, floor_heads, whole=whole)
    if limit is not None:
        made = dataclasses.replace(made, limit=limit)
    return Task(loaded, dense, made, budget, text, latencies)


def measured_latencies(dense: Decoder) -> CostTable:
    """Milliseconds of a decoded token at level 1 by head groups, measured here; neurons all stay."""
    table = measure_latencies(dense)
    neurons = Width.full(dense.spec).neurons
    return costs_by_layer(dense.spec, lambda counts: table.predict_width(Width(tuple(counts), neurons)))


def state_of(output: Path) -> Path:
    """The folder beside ``output`` that keeps the cycles of a run that goes on."""
    return output.with_name(f"{output.name}.state")


def check_state(output: Path, *, resume: bool, force: bool) -> None:
    """Raise `InputError` unless there is an interrupted run where one is to go on, and none that would be lost."""
    state = state_of(output)
    if resume and not is_state(state):
        raise InputError(f"there is no interrupted run in {state}; leave out --resume")
    if not resume and not force and is_state(state):
        raise InputError(f"{state} holds an interrupted run; add --resume to go on with it, or --force to start anew")
    check_output_folder(state, resume or force, () if resume else [WEIGHTS])


def adapt(
    model: Model | str | Path,
    folder: str | Path,
    budget: str,
    *,
    text: AdaptationText | None = None,
    expand_kv: bool = False,
    floor_heads: int = 0,
    settings: ControllerSettings | None = None,
    resume: bool = False,
    force: bool = False,
) -> Model:
    """Prune, measure, regrow and learn in cycles, down to ``budget``: fp32 weights ("400MB"), a speed-up at level 1 as
    measured here ("1.3x"), or the share of heads that stay ("0.5").

    The best cycle's model is written to ``folder`` after every cycle, with ``adaptation.json`` beside it, and returned;
    what all cycles did is its ``adaptation``. A run that was interrupted goes on with ``resume``.
    """
    output = Path(folder).expanduser().resolve()
    check_state(output, resume=resume, force=force)
    check_output_folder(output, resume or force, MODEL_FILES)
    found = read_state(state_of(output)) if resume else None
    loaded = as_model(model).loaded.in_fp32()
    task = task_of(
        loaded,
        budget,
        text or AdaptationText(),
        expand_kv=expand_kv,
        floor_heads=floor_heads,
        latencies=found[0].latencies if found else None,
        limit=found[0].limit if found else None,
    )
    settings = settings or ControllerSettings()
    windows, step = task.windows(settings.seed)
    controller = task.controller(windows, settings)
    if found:
        controller.resume(*found)
    replace = resume or force

    def keep(student: Decoder, best: bool) -> None:
        nonlocal replace
        if best:
            made = controller.record
            done = dataclasses.replace(step, settings=made.settings, cycles=len(made.cycles))
            save_checkpoint(student, output, loaded.tokenizer, loaded.record.then(done), force=replace)
        with write_into(output) as temporary:
            (temporary / FILE).write_text(controller.record.to_json(), encoding="utf-8")
        replace = True  # what stands there is of this run
        write_state(state_of(output), controller.record, controller.model.decoder.state_dict())

    record = controller.run(keep)
    remove_written(state_of(output))
    adapted = as_model(output)
    adapted.adaptation = record
    return adapted

"""`recover`: what a pruned model learns from the unpruned one."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

from sentinel.adapt.recovery.recover import recover as recover_decoder
from sentinel.adapt.recovery.settings import RecoverySettings
from sentinel.api.model import Model, as_model
from sentinel.infer.training_text import training_windows
from sentinel.models.record import SELF, Recovered

MINUTES = 30.0


def recover(
    model: Model | str | Path,
    teacher: Model | str | Path,
    *,
    text: str = SELF,
    held_out: str | None = None,
    tokens: int = 262_144,
    held_out_tokens: int = 8192,
    length: int = 256,
    settings: RecoverySettings | None = None,
    state: Path | None = None,
    in_place: bool = False,
) -> Model:
    """A model that has learned its ``teacher``'s predictions on ``text`` (distillation, Hinton et al. 2015).

    Windows of ``length`` tokens are learned from, by default of text that the teacher writes itself (``self``);
    ``held_out`` text, by default other documents of the same, the valid splits or a part of ``text``, decides when to
    stop and what is kept. How long and how is in ``settings``, 30 minutes by default. ``state`` is a folder from which a
    run that was interrupted goes on. A copy of ``model`` learns, or ``in_place`` the model itself. What was done is the
    result's ``recovery``.

    Raises `InputError` for random weights, a teacher of another vocabulary, and too little text.
    """
    loaded, other = as_model(model).loaded.in_fp32(), as_model(teacher).loaded.in_fp32()
    loaded.require_real_weights("its recovery")
    settings = settings or RecoverySettings(minutes=MINUTES)
    student = loaded.decoder if in_place else copy.deepcopy(loaded.decoder)
    train, judges = training_windows((loaded, other), text, held_out, tokens, held_out_tokens, length, settings.seed)
    found = recover_decoder(student, other.decoder, train.tokens, judges.tokens, settings, folder=state)
    step = Recovered(
        source=loaded.name,
        teacher=other.name,
        texts=text,
        settings=dataclasses.asdict(settings),
        steps=len(found.steps),
        tokens=found.tokens,
        seconds=round(found.seconds, 1),
        divergence_before=found.held_out[0].mean_kl,
        divergence_after=found.best.mean_kl,
        documents=train.fingerprints,
        own_text=dict(train.own_text),
        held_out=judges.fingerprints,
        # What the teacher had seen, the student has learned.
        others_seen=tuple(sorted(other.record.seen_documents())),
    )
    recovered = Model(dataclasses.replace(loaded, decoder=student.cpu(), record=loaded.record.then(step)))
    recovered.recovery = found
    return recovered

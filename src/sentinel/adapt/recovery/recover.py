"""Recovery: a pruned student learns to predict as its unpruned teacher does (distillation, Hinton et al. 2015)."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sentinel.adapt.recovery.run import RecoveryRun, is_sharded, make_accelerator
from sentinel.adapt.recovery.settings import RecoverySettings
from sentinel.adapt.recovery.state import HeldOut, Step
from sentinel.adapt.recovery.student import CHOICES, Choice, Student, bf16_pays
from sentinel.errors import InputError
from sentinel.models.decoder import Decoder
from sentinel.models.dtypes import require_fp32
from sentinel.models.token_text import check_ids


@dataclass(frozen=True)
class Recovery:
    """What a recovery did; ``best`` is the held-out result of the parameters that the student now has."""

    steps: tuple[Step, ...]
    held_out: tuple[HeldOut, ...]
    best: HeldOut
    teacher_nll: float
    tokens: int
    seconds: float

    @property
    def losses(self) -> tuple[float, ...]:
        return tuple(step.loss for step in self.steps)

    @property
    def tokens_per_s(self) -> float:
        """Training tokens per second of the whole run: the teacher, held-out text and saving included."""
        return self.tokens / self.seconds if self.seconds else 0.0


def recover(
    student: Decoder,
    teacher: Decoder,
    train: Tensor,
    held_out: Tensor,
    settings: RecoverySettings,
    *,
    folder: Path | None = None,
    trainable: Choice | None = None,
    rate_multiplier: Callable[[str], float] | None = None,
    after_step: Callable[[Step], None] | None = None,
) -> Recovery:
    """Train ``student`` in place on windows ``train`` [windows, T]; it ends with the parameters that did best on
    ``held_out`` [windows, T], which may be those it began with.

    ``folder`` keeps state and metrics: a run that was killed goes on from there. ``trainable`` says by name and parameter
    what learns, in place of ``settings.train``; ``rate_multiplier`` scales the learning rate of a parameter by name
    (of an elastic model, by its name in `Student.learned`). ``after_step`` is called after every update.

    Both models go to the device that Accelerate chose while it lasts, and back to their own at the end. Of several
    processes each holds the student, or with FSDP2 a shard of a copy of it; what they learn is the same. A run may go on in
    another number of them that takes as many windows per update in all.

    Raises `InputError` for a teacher of another vocabulary, an elastic student with FSDP2, too few windows, files of
    another run in ``folder``, a disk that is full, and a loss that is no number; what was saved last stays.
    """
    _check(student, teacher, train, held_out, settings)
    places = [(decoder, decoder.device) for decoder in (student, teacher)]
    accelerator = make_accelerator(unused_parameters=bool(student.widths))
    bf16 = bf16_pays(accelerator.device) if settings.bf16 is None else settings.bf16
    sharded = is_sharded(accelerator)
    if sharded:
        _refuse_widths(student)
    model = Student(
        copy.deepcopy(student) if sharded else student,  # what is sharded can't be made whole again
        trainable or CHOICES[settings.train],
        temperature=settings.temperature,
        state_weight=settings.state_weight,
        bf16=bf16,
        gradient_checkpointing=settings.gradient_checkpointing,
    )
    try:
        if folder is None and accelerator.num_processes > 1:
            raise InputError("several processes need a folder that all of them can read; name one")
        with _folder(folder) as path:
            run = RecoveryRun(accelerator, model, teacher, (train, held_out), settings, path, rate_multiplier)
            did = run.through(after_step)
            if sharded:
                run.copy_best(student)
            return Recovery(tuple(did.steps), tuple(did.held_out), did.best, did.teacher_nll, did.tokens, did.seconds)
    except FloatingPointError as error:
        kept = f"; it goes on from the last state in {folder}" if folder is not None else ""
        raise InputError(f"{error}; lower the learning rate{kept}") from error
    except OSError as error:
        raise InputError(f"{folder or 'a temporary file'} can't be written ({error.strerror or error})") from error
    finally:
        model.release()
        for decoder, device in places:
            decoder.to(device)


def _check(student: Decoder, teacher: Decoder, train: Tensor, held_out: Tensor, settings: RecoverySettings) -> None:
    for decoder in (student, teacher):
        require_fp32(decoder, "recovery")
    if teacher.spec.vocab_size != student.spec.vocab_size:
        raise InputError(
            f"the teacher has {teacher.spec.vocab_size} tokens and the student {student.spec.vocab_size}; a teacher "
            "needs the same vocabulary"
        )
    for windows in (train, held_out):
        check_ids(int(windows.max()) if len(windows) else 0, student.spec.vocab_size)
    if len(train) < settings.batch:
        raise InputError(f"{len(train)} training windows are fewer than the batch of {settings.batch}; give more text")
    if len(held_out) == 0:
        raise InputError("there is no held-out window; give more held-out text")


def _refuse_widths(student: Decoder) -> None:
    if student.widths:
        raise InputError(
            "the widths of an elastic model take turns, which its shards can't; let it learn in one process, or in several "
            "with DDP"
        )


@contextmanager
def _folder(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="sentinel-recovery-") as name:
            yield Path(name)

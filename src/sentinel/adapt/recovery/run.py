"""The training loop of recovery.

It is Hugging Face Accelerate's, so that ``accelerate launch`` and ``torchrun`` run it on several devices or machines.
Which windows a step sees, and at which width, is a function of the step alone: a run that was interrupted goes
on exactly as if it had not been.

The widths of an elastic model take turns, one per step. What learns belongs to one width each, so that this is the work
of sandwich training (Yu and Huang 2019) in another order.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sentinel.adapt.recovery.settings import RecoverySettings
from sentinel.adapt.recovery.state import (
    BEST,
    STATE,
    HeldOut,
    Metrics,
    Progress,
    RunFolder,
    Step,
    flat_tensors,
    identity_of,
    nested_tensors,
)
from sentinel.adapt.recovery.student import Student
from sentinel.adapt.recovery.teacher import Teacher
from sentinel.errors import InputError
from sentinel.models.decoder import Decoder
from sentinel.progress import progress_bar, say

if TYPE_CHECKING:
    from accelerate import Accelerator


def make_accelerator(*, unused_parameters: bool = False) -> Accelerator:
    """The processes and devices that ``accelerate launch`` or ``torchrun`` gave, or the one that is here.

    ``unused_parameters``: a step may leave some of what learns unused, as those of an elastic model do.
    """
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs
    except ImportError as error:
        raise InputError("recovery needs Accelerate; install 'sentinel-ai[train]'") from error
    return Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused_parameters)])


def is_sharded(accelerator: Accelerator) -> bool:
    """True where processes hold shards of the student (FSDP2); `InputError` for FSDP1, whose flat parameters hold no layers
    of their own learning rate."""
    if str(accelerator.distributed_type.value) != "FSDP":
        return False
    if not accelerator.is_fsdp2:
        raise InputError("recovery takes FSDP2 alone; give accelerate launch --fsdp_version 2")
    return True


class RecoveryRun:
    """One recovery under way."""

    def __init__(
        self,
        accelerator: Accelerator,
        student: Student,
        teacher: Decoder,
        windows: tuple[Tensor, Tensor],
        settings: RecoverySettings,
        folder: Path,
        rate_multiplier: Callable[[str], float] | None,
    ) -> None:
        self.accelerator, self.student, self.settings = accelerator, student, settings
        self.train, self.held_out = windows
        # A lower learning rate may go on from the last state after a loss that was no number.
        neutral = {
            "learning_rate": 1.0,
            "checkpoint_minutes": 0.0,
            "tensorboard": False,
            "gradient_checkpointing": False,
        }
        relevant = dataclasses.replace(settings, **neutral, batch=1, accumulate=1)  # windows per update are what counts
        self.per_update = settings.batch * settings.accumulate * accelerator.num_processes
        identity = identity_of((student, teacher), windows, f"{relevant} {self.per_update}")
        self.folder = RunFolder(folder, identity, writes=accelerator.is_main_process)
        self.progress: Progress = self.folder.progress
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            self.folder.begin(accelerator.num_processes)
        accelerator.wait_for_everyone()
        teacher.to(accelerator.device)
        kept = {"count": settings.top, "temperature": settings.temperature, "states": settings.state_weight > 0}
        file = self.folder.teacher_file(accelerator.process_index)
        self.teacher = Teacher(teacher, self.train, path=file, **kept)
        self.examiner = Teacher(teacher, self.held_out, **kept)
        groups = _groups(student, rate_multiplier)
        self.multipliers = [group.pop("multiplier") for group in groups]
        optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=settings.weight_decay, betas=(0.9, 0.99), fused=True)
        self.model: nn.Module
        self.optimizer: Any
        self.model, self.optimizer = accelerator.prepare(student, optimizer)
        if self.progress.step:
            self._load(self.folder.read(STATE))
        self.started = time.monotonic() - self.progress.seconds

    def through(self, after_step: Callable[[Step], None] | None) -> Progress:
        """Train to the end. Raises `FloatingPointError` for a loss that is no number, before it reaches the weights."""
        progress, settings = self.progress, self.settings
        metrics = Metrics(
            self.folder.path if self.folder.writes else None, progress.step, tensorboard=settings.tensorboard
        )
        saved = self._seconds()
        with progress_bar("Recovering", done=settings.done(progress.step, progress.seconds)) as show:
            if not progress.held_out:
                with self.student.working_precision(self.accelerator.device):
                    progress.teacher_nll = self.examiner.nll(settings.batch)
                self._judge(metrics)
            while not progress.finished:
                before = settings.done(progress.step, progress.seconds)
                step = self._update()
                metrics.add(step)
                done = settings.done(progress.step, progress.seconds)
                judged = done >= 1 or int(done * settings.evaluations) > int(before * settings.evaluations)
                if judged:
                    self._judge(metrics)
                progress.finished = done >= 1 or progress.is_stale(settings.patience)
                if progress.finished or judged or progress.seconds - saved >= 60 * settings.checkpoint_minutes:
                    self.folder.save_state(self._tensors(), progress)
                    saved = progress.seconds
                show(done, f"Recovering, step {step.step}, loss {step.loss:.4f}")
                if after_step is not None:
                    after_step(step)
        metrics.close()
        self.accelerator.wait_for_everyone()
        self._load(self.folder.read(BEST))
        self.accelerator.wait_for_everyone()  # who goes on may remove what the others still read
        return progress

    def _update(self) -> Step:
        """One update of the parameters."""
        settings, progress = self.settings, self.progress
        number = progress.step
        rate = settings.rate(number, progress.seconds)
        for group, multiplier in zip(self.optimizer.param_groups, self.multipliers, strict=True):
            group["lr"] = rate * multiplier
        widths = max(1, len(self.student.widths))
        total = torch.zeros((), device=self.accelerator.device)
        for part in range(settings.accumulate):
            last = part == settings.accumulate - 1
            indices = self._indices(number // widths * settings.accumulate + part)
            tokens = self.train[indices].to(self.accelerator.device)
            with self.student.working_precision(self.accelerator.device):
                targets = self.teacher.targets(indices)
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss = self.model(tokens, targets, number % widths) / settings.accumulate
                self.accelerator.backward(loss)
            total += loss.detach()
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), settings.clip)
        mean = float(self._over_processes(total, "mean"))
        if not math.isfinite(mean) or (norm is not None and not math.isfinite(float(norm))):
            raise FloatingPointError(f"the loss of step {number + 1} is NaN or infinite")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        progress.tokens += self.per_update * (self.train.shape[1] - 1)
        progress.seconds = self._seconds()
        level = self.student.label(number % widths)
        progress.steps.append(Step(number + 1, level, mean, rate, progress.tokens, progress.seconds))
        return progress.steps[-1]

    def _indices(self, batch: int) -> list[int]:
        """Windows of this process in the given batch: every window once per pass, in an order drawn per pass."""
        processes, size = self.accelerator.num_processes, self.settings.batch
        first = (batch * processes + self.accelerator.process_index) * size
        chosen = []
        for place in range(first, first + size):
            turn, position = divmod(place, len(self.train))
            generator = torch.Generator("cpu").manual_seed(self.settings.seed * 1_000_003 + turn)
            chosen.append(int(torch.randperm(len(self.train), generator=generator, device="cpu")[position]))
        return chosen

    @torch.no_grad()
    def _judge(self, metrics: Metrics) -> None:
        """Judge by held-out text, and keep the parameters if they are the best so far."""
        progress, accelerator = self.progress, self.accelerator
        kl: dict[str, float] = {}
        nlls: dict[str, float] = {}
        count = self.held_out.numel() - len(self.held_out)
        batches = torch.arange(len(self.held_out), device="cpu").split(self.settings.batch)
        for width in range(max(1, len(self.student.widths))):
            sums = torch.zeros(2, device=accelerator.device)
            for turn in range(0, len(batches), accelerator.num_processes):
                mine = turn + accelerator.process_index  # every process runs as often, as sharded models need
                batch = batches[min(mine, len(batches) - 1)]
                with self.student.working_precision(accelerator.device):
                    targets = self.examiner.targets(batch.tolist())
                judged = self.model(self.held_out[batch].to(accelerator.device), targets, width, True)
                sums += judged * (mine < len(batches))
            divergence, nll = self._over_processes(sums, "sum").tolist()
            label = self.student.label(width)
            kl[label], nlls[label] = divergence / count, nll / count
        if not all(map(math.isfinite, (*kl.values(), *nlls.values()))):
            raise FloatingPointError(f"the held-out loss after step {progress.step} is NaN or infinite")
        progress.seconds = self._seconds()
        found = HeldOut(progress.step, progress.seconds, kl, nlls)
        progress.held_out.append(found)
        metrics.add(found)
        if progress.best is found:
            self.folder.save_best(self._tensors(optimizer=False))
        if accelerator.is_main_process:
            say(_line(found, progress, self.settings))

    def _over_processes(self, values: Tensor, reduction: str) -> Tensor:
        reduced = self.accelerator.reduce(values, reduction)
        assert isinstance(reduced, Tensor)
        return reduced

    def _seconds(self) -> float:
        """Seconds of this run, all its parts together; the same in every process."""
        seconds = torch.tensor(time.monotonic() - self.started, dtype=torch.float64, device="cpu")
        if self.accelerator.num_processes > 1:
            seconds = seconds.to(self.accelerator.device)
            torch.distributed.broadcast(seconds, src=0)
        return float(seconds)

    def _tensors(self, *, optimizer: bool = True) -> dict[str, Tensor]:
        """What learns, and the optimizer's state of it, whole and on the CPU, however it is spread over processes."""
        from torch.distributed.checkpoint.state_dict import get_state_dict

        self._set_dense()
        weights: dict[str, Any]
        state: dict[str, Any]
        weights, state = get_state_dict(self.model, self.optimizer.optimizer, options=_options())  # pyright: ignore[reportAssignmentType]
        tensors = {f"model.{name}": tensor.contiguous() for name, tensor in weights.items()}
        return {**tensors, **flat_tensors(state.get("state", {}))} if optimizer else tensors

    def _load(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `_tensors`; leaves the optimizer alone where there is no state of it."""
        from torch.distributed.checkpoint.state_dict import (
            get_optimizer_state_dict,
            set_model_state_dict,
            set_optimizer_state_dict,
        )

        self._set_dense()
        options = _options()
        weights: dict[str, Any] = {
            name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")
        }
        set_model_state_dict(self.model, weights, options=options)
        nested = nested_tensors(tensors)
        if nested:
            optimizer = self.optimizer.optimizer
            groups = get_optimizer_state_dict(self.model, optimizer, options=_options(first_process_only=False))
            state = {**groups, "state": nested}
            set_optimizer_state_dict(self.model, optimizer, state, options=options)

    def copy_best(self, decoder: Decoder) -> None:
        """Copy the best parameters into a decoder of the student's shapes, which is not the one that learned."""
        best = {name.removeprefix("model.decoder."): tensor for name, tensor in self.folder.read(BEST).items()}
        decoder.load_state_dict({**decoder.state_dict(), **best})

    def _set_dense(self) -> None:
        """Leave the parameters of every width in one place only."""
        self.student.decoder.set_width(0.0)


def _options(*, first_process_only: bool = True) -> Any:
    """Whole tensors of what learns: on the CPU of the first process, where alone PyTorch puts them, or on every device."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(
        full_state_dict=True, ignore_frozen_params=True, strict=False, cpu_offload=first_process_only
    )


def _groups(student: Student, rate_multiplier: Callable[[str], float] | None) -> list[dict[str, Any]]:
    """Parameter groups of one learning rate each."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in student.learned():
        groups.setdefault(1.0 if rate_multiplier is None else rate_multiplier(name), []).append(parameter)
    return [{"params": parameters, "multiplier": multiplier} for multiplier, parameters in groups.items()]


def _line(found: HeldOut, progress: Progress, settings: RecoverySettings) -> str:
    """One line for the person who waits."""
    done = settings.done(found.step, found.seconds)
    judged = ", ".join(f"{k}: perplexity {found.perplexity[k]:.2f}, KL {found.kl[k]:.4f}" for k in found.kl)
    loss = f", loss {progress.steps[-1].loss:.4f}, {progress.tokens / found.seconds:.0f} tokens/s" if found.step else ""
    left = f", about {found.seconds * (1 - done) / done / 60:.1f} min left" if 0 < done < 1 else ""
    return f"step {found.step}{loss}; {judged}{left}"

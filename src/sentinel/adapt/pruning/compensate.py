"""Closed-form compensation: re-solve the output projections of a pruned model on its own inputs.

Going through the layers in order, each attention output projection and each MLP down projection W (with a bias b) is
replaced by the ridge solution of

    min  sum_t || x_t + W z_t + b - y_t ||^2  +  damping * mean(diag(Z'Z)) * || W - W_0 ||^2

where z_t is what the projection reads in the pruned model, x_t the pruned model's residual stream before it, y_t the
dense model's residual stream after it, and W_0 the weights that are there. The target y_t - x_t corrects the drift that
earlier layers left, not only this layer's loss. (Layer-wise reconstruction as in OBC, Frantar and Alistarh 2022, and
OSSCAR, Meng et al. 2024; their target is the layer's own dense output.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sentinel.adapt.integration import require_plain
from sentinel.adapt.pruning.compact import select
from sentinel.adapt.pruning.gram_matrices import gram_of
from sentinel.adapt.pruning.residual_stream import HALVES, Half, Stream, device_of_float64, half_of
from sentinel.errors import InputError
from sentinel.models.decoder import Decoder
from sentinel.models.width import Kept
from sentinel.progress import say, track

DAMPINGS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
FIRST_DAMPING = 6  # where the search begins: the one that is chosen most often on text that a model wrote
BIAS_DAMPING = 1e-6  # of the bias: it is one number per output and hardly needs any
HELD_OUT = 8  # every 8th window is held out to choose the damping
TRIED = 64  # about as many outputs, evenly spread, are solved for with each damping that is tried: enough to choose by


@dataclass
class Normal:
    """Normal equations of a least-squares problem with a constant input, in float64.

    ``gram`` [K+1, K+1] and ``cross`` [K+1, C] are sums over tokens of z z' and z target', z ending in 1; ``energy`` is
    the sum of squared targets.
    """

    gram: Tensor
    cross: Tensor
    energy: float = 0.0

    @classmethod
    def empty(cls, inputs: int, outputs: int, device: torch.device | str = "cpu") -> Normal:
        gram = torch.zeros(inputs + 1, inputs + 1, dtype=torch.float64, device=device)
        return cls(gram, torch.zeros(inputs + 1, outputs, dtype=torch.float64, device=device))

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Add tokens: ``inputs`` [N, K], ``targets`` [N, C]."""
        device = self.gram.device
        sums = inputs.sum(0).to(device)
        self.gram[:-1, :-1] += gram_of(inputs).to(device)
        self.gram[-1, :-1] += sums
        self.gram[:-1, -1] += sums
        self.gram[-1, -1] += len(inputs)
        self.cross[:-1] += (inputs.T @ targets).to(device)
        self.cross[-1] += targets.sum(0).to(device)
        self.energy += float(targets.to(device).double().square().sum())

    def of_outputs(self, step: int) -> Normal:
        """The problem of every ``step``-th output. Its energy stays that of all, a constant in comparisons."""
        return Normal(self.gram, self.cross[:, ::step], self.energy)

    def __iadd__(self, other: Normal) -> Normal:
        self.gram += other.gram
        self.cross += other.cross
        self.energy += other.energy
        return self

    def error(self, solution: Tensor) -> float:
        """Sum of squared residuals of ``solution`` [K+1, C]."""
        explained = 2 * (solution * self.cross).sum() - (solution * (self.gram @ solution)).sum()
        return self.energy - float(explained)


def solve(normal: Normal, prior: Tensor, damping: float) -> Tensor:
    """The ridge solution [K+1, C] towards ``prior`` [K+1, C], in float64.

    A Gram matrix that is singular in spite of the damping gets ten times as much, and that is said. It takes one matrix
    like the Gram matrix, which is factored in place.
    """
    size = len(normal.gram)
    scale = float(normal.gram.diagonal()[:-1].mean()) if size > 1 else 0.0
    while True:
        ridge = torch.full((size,), damping * scale, dtype=torch.float64, device=normal.gram.device)
        ridge[-1] = BIAS_DAMPING * normal.gram[-1, -1]
        factor = normal.gram.clone().mT  # itself, being symmetric, in the order in which LAPACK factors in place
        factor.diagonal().add_(ridge)
        failed = torch.empty((), dtype=torch.int32, device=factor.device)
        torch.linalg.cholesky_ex(factor, out=(factor, failed))
        if not failed:
            found = torch.empty_like(prior.mT, memory_format=torch.contiguous_format).mT
            torch.addcmul(normal.cross, ridge[:, None], prior, out=found)
            torch.linalg.solve_triangular(factor, found, upper=False, out=found)
            return torch.linalg.solve_triangular(factor.mT, found, upper=True, out=found)
        if not torch.isfinite(normal.gram).all():
            raise InputError("activations are NaN or infinite; check the model's weights")
        say(f"the Gram matrix is singular at damping {damping:g}; damped ten times as much")
        damping, scale = 10 * damping, scale or 1.0


def best_solution(train: Normal, held_out: Normal, prior: Tensor) -> tuple[Tensor, float]:
    """The ridge solution over all tokens with the damping that does best on the held-out ones; and that damping.

    ``train`` is that of all tokens afterwards. The damping is chosen by about `TRIED` of the outputs. The held-out error
    has one valley over the dampings, so that the search walks downhill from the middle.
    """
    step = max(1, prior.shape[1] // TRIED)
    some, judges, before = train.of_outputs(step), held_out.of_outputs(step), prior[:, ::step]
    errors = {FIRST_DAMPING: judges.error(solve(some, before, DAMPINGS[FIRST_DAMPING]))}
    for way in (1, -1):
        best = min(errors, key=errors.__getitem__)
        while best + way in range(len(DAMPINGS)) and best + way not in errors:
            errors[best + way] = judges.error(solve(some, before, DAMPINGS[best + way]))
            if errors[best + way] >= errors[best]:
                break
            best += way
    damping = DAMPINGS[min(errors, key=errors.__getitem__)]
    train += held_out
    return solve(train, prior, damping), damping


def compensate(
    dense: Decoder, kept: Sequence[Kept], windows: Tensor, *, halves: Sequence[Half] = HALVES
) -> list[Decoder]:
    """A compacted and compensated decoder of each of what may be ``kept`` of ``dense``.

    ``windows`` [windows, T] are calibration tokens. The dense model runs once for all of them. Memory: 4 bytes x tokens x
    n_embd for each stream, and float64 normal equations of one projection. Raises `InputError` for NaN activations, with
    the layer.
    """
    require_plain(dense, "compensation")
    if windows.shape[0] < 2:
        raise InputError("compensation needs at least two windows of calibration text; give more text")
    teacher = Stream(dense, windows)
    students = [Stream(select(dense, stays, biases=True), windows) for stays in kept]
    with torch.no_grad():
        for index in track(range(dense.spec.n_layer), "Compensating", dense.spec.n_layer):
            for half in HALVES:
                teacher.advance(index, half)
                for student in students:
                    if half in halves:
                        resolve(student, teacher, index, half)
                    else:
                        student.advance(index, half)
    return [student.decoder for student in students]


def resolve(student: Stream, teacher: Stream, index: int, half: Half) -> None:
    """Replace one projection of the student, and advance its stream."""
    projection = half_of(student.block(index, half), half).projection
    width, columns = projection.weight.shape
    device = device_of_float64(projection.weight.device)
    parts = [Normal.empty(columns, width, device), Normal.empty(columns, width, device)]
    kept = student.empty(columns)
    for batch in student.batches():
        inputs = student.inputs(index, half, batch)
        kept[batch] = inputs
        target = _target(teacher, student, index, batch)
        numbers = torch.arange(batch.start, batch.start + len(inputs), device=inputs.device)
        held = numbers % HELD_OUT == min(HELD_OUT, len(student.states)) - 1
        for normal, rows in zip(parts, (~held, held), strict=True):
            if rows.any():
                normal.add(inputs[rows].flatten(0, 1), target[rows].flatten(0, 1))
    bias = projection.bias
    prior = torch.cat((projection.weight.T, bias[None])).to(device).double()
    solution, _ = best_solution(parts[0], parts[1], prior)
    solution = solution.float().to(projection.weight.device)
    projection.weight = nn.Parameter(solution[:-1].T.contiguous())
    projection.bias = nn.Parameter(solution[-1])
    student.add(index, half, (student.project(index, half, kept[batch]) for batch in student.batches()))


def _target(teacher: Stream, student: Stream, index: int, batch: slice) -> Tensor:
    """What a projection of the student should give [B, T, C]: what leads its stream back to the teacher's.

    A norm after the half layer undoes every scale, so that there the target is the teacher's output before the norm.
    """
    joints = student.decoder.spec.block
    if joints.post_norm:
        assert teacher.outputs is not None
        return teacher.outputs[batch]
    return (teacher.states[batch] - student.states[batch]) / joints.residual_scale

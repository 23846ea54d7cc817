"""What a recovery keeps on disk: the state it goes on from, the best parameters so far, and its metrics."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from sentinel.adapt.recovery.likelihood import finite, perplexity_of
from sentinel.errors import InputError
from sentinel.files import claim_folder, remove_written, write_file
from sentinel.formats.weight_files import write_tensors

STATE, BEST, METRICS, TEACHER = "state.safetensors", "best.safetensors", "metrics.jsonl", "teacher-{rank}.bin"


@dataclass(frozen=True)
class Step:
    """One update: width, mean loss over its windows, learning rate, training tokens and seconds so far."""

    step: int
    level: str
    loss: float
    learning_rate: float
    tokens: int
    seconds: float


@dataclass(frozen=True)
class HeldOut:
    """Held-out text after ``step`` updates: divergence from the teacher and negative log-likelihood, both in nats a token,
    by width (of a model that stores none, the one entry "all"). ``mean_kl`` is what early stopping goes by."""

    step: int
    seconds: float
    kl: dict[str, float]
    nll: dict[str, float]

    @property
    def perplexity(self) -> dict[str, float]:
        """By width; infinite where that is beyond a float."""
        return {level: perplexity_of(nll) for level, nll in self.nll.items()}

    @property
    def mean_kl(self) -> float:
        return sum(self.kl.values()) / len(self.kl)


@dataclass
class Progress:
    """How far a recovery has come."""

    seconds: float = 0.0
    tokens: int = 0
    teacher_nll: float = 0.0
    steps: list[Step] = field(default_factory=list)
    held_out: list[HeldOut] = field(default_factory=list)
    finished: bool = False

    @property
    def step(self) -> int:
        return len(self.steps)

    @property
    def best(self) -> HeldOut:
        return min(self.held_out, key=lambda found: found.mean_kl)

    def is_stale(self, patience: int) -> bool:
        """True after ``patience`` judgements without a lower divergence.

        The start does not count: at the highest learning rate a well compensated model is worse for a while.
        """
        learned = [found.mean_kl for found in self.held_out[1:]]
        return bool(learned) and len(learned) - 1 - learned.index(min(learned)) >= patience

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Progress:
        data = json.loads(text)
        data["steps"] = [Step(**step) for step in data["steps"]]
        data["held_out"] = [HeldOut(**found) for found in data["held_out"]]
        return cls(**data)


class RunFolder:
    """The folder of one recovery, ``identity`` being the digest of everything that decides its result.

    Files of an unfinished run of the same identity are gone on from; those of another are refused. State and best
    parameters are written whole or not at all, so that an interruption costs the steps since the last ones.
    """

    def __init__(self, path: Path, identity: str, *, writes: bool) -> None:
        self.path, self.identity, self.writes = path, identity, writes
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file; name another folder for the state of the recovery")
        found = _metadata(path / STATE) if (path / STATE).exists() else {}
        if found and found.get("identity") != identity:
            raise InputError(
                f"{path} holds a recovery of another model, text or settings (batch x accumulate x processes is one of "
                "them); remove it or name another folder"
            )
        try:
            self.progress = Progress.from_json(found["progress"]) if found else Progress()
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} holds a recovery of another version of sentinel; remove it") from error

    def begin(self, processes: int) -> None:
        """Make the folder ready for so many processes, whether the run starts anew or goes on; a file in it that another
        program wrote is refused by name."""
        names = [STATE, BEST, METRICS]
        if self.progress.step:
            names = []
        else:
            clear_state(self.path)
        teachers = [TEACHER.format(rank=rank) for rank in range(processes)]
        claim_folder(self.path, [*names, *(name for name in teachers if not (self.path / name).exists())])

    def teacher_file(self, rank: int) -> Path:
        """Where this process keeps what the teacher said."""
        return self.path / TEACHER.format(rank=rank)

    def save_state(self, tensors: dict[str, Tensor], progress: Progress) -> None:
        """Write parameters, optimizer and progress."""
        self._write(STATE, tensors, {"identity": self.identity, "progress": progress.to_json()})

    def save_best(self, tensors: dict[str, Tensor]) -> None:
        """Write the parameters that did best on held-out text."""
        self._write(BEST, tensors, {"identity": self.identity})

    def _write(self, name: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        if self.writes:
            with write_file(self.path / name) as temporary:
                write_tensors(tensors, temporary, metadata)

    def read(self, name: str) -> dict[str, Tensor]:
        """The tensors of the state or of the best parameters."""
        with safe_open(self.path / name, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def clear_state(folder: Path) -> None:
    """Remove what only an unfinished recovery needs: all but the metrics."""
    remove_written(folder, [STATE, BEST, *(path.name for path in folder.glob(TEACHER.format(rank="*")))])


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


class Metrics:
    """Steps and held-out results as JSON lines and, if asked for, TensorBoard events; lines past ``step`` are dropped."""

    def __init__(self, folder: Path | None, step: int, *, tensorboard: bool) -> None:
        self._file = None if folder is None else folder / METRICS
        if self._file is not None:
            kept = _lines_up_to(self._file, step) if step else []
            with write_file(self._file) as temporary:
                temporary.write_text("".join(kept), encoding="utf-8")
        self._events = None
        if tensorboard and folder is not None:
            self._events = _summary_writer(folder / "tensorboard", step)

    def add(self, record: Step | HeldOut) -> None:
        values = dataclasses.asdict(record)
        if isinstance(record, HeldOut):
            values["perplexity"] = {level: finite(value) for level, value in record.perplexity.items()}
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        if self._events is not None:
            for name, value in _scalars(values):
                self._events.add_scalar(name, value, record.step)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


def _scalars(values: dict[str, Any]) -> Iterable[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from ((f"{name}/{key}", number) for key, number in value.items() if number is not None)
        elif name not in ("step", "level"):
            yield name, value


def _summary_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            "TensorBoard is not installed; install 'sentinel-ai[train]' or leave out --tensorboard"
        ) from error
    return SummaryWriter(folder, purge_step=step + 1)


def _lines_up_to(file: Path, step: int) -> list[str]:
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):  # a line that an interruption cut off
            continue
    return kept


def identity_of(modules: Iterable[nn.Module], tensors: Iterable[Tensor], text: str) -> str:
    """Digest of settings, texts and models; of each weight 64 numbers are enough to tell models apart."""
    digest = hashlib.sha256(text.encode())
    for module in modules:
        for name, tensor in module.state_dict().items():
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            sample = tensor.flatten()[:: max(1, tensor.numel() // 64)]
            digest.update(sample.detach().float().cpu().numpy().tobytes())
    for tensor in tensors:
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:24]


def flat_tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    """Optimizer state by parameter and quantity as one flat dictionary of tensors."""
    return {
        f"optimizer.{quantity}.{name}": (
            value if isinstance(value, Tensor) else torch.tensor(value, device="cpu")
        ).contiguous()
        for name, quantities in state.items()
        for quantity, value in quantities.items()
    }


def nested_tensors(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The inverse of `flat_tensors`."""
    state: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, quantity, name = key.split(".", 2)
            state.setdefault(name, {})[quantity] = tensor
    return state

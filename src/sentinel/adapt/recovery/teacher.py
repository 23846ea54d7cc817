"""What the teacher predicts at every token of the recovery text, computed when a window is first met and then kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sentinel.adapt.recovery.distillation import TeacherTargets, likeliest, negative_log_likelihood
from sentinel.errors import InputError
from sentinel.models.decoder import Decoder


class Teacher:
    """Targets of ``decoder`` for ``windows`` [windows, T]: position t predicts token t + 1.

    Kept in memory (6 bytes per kept token and position, 2 per state) and, with ``path``, appended to a file that a later
    run of the same teacher and windows reads; what was cut off by an interruption is computed again. ``states`` keeps
    the final states too.
    """

    def __init__(
        self,
        decoder: Decoder,
        windows: Tensor,
        *,
        count: int = 64,
        temperature: float = 1.0,
        states: bool = False,
        path: Path | None = None,
    ) -> None:
        self.decoder, self.windows, self.path = decoder.eval(), windows, path
        self.count, self.temperature = min(count, decoder.spec.vocab_size), temperature
        fields = [
            ("window", "<i4"),
            ("tokens", "<i4", self._shape(self.count)),
            ("log_probs", "<f2", self._shape(self.count)),
        ]
        if states:
            fields.append(("states", "<f2", self._shape(decoder.spec.n_embd)))
        self._record = np.dtype(fields)
        self._known: dict[int, Any] = {}  # records, numpy.void
        if path is not None and path.exists():
            self._read(path)

    def _shape(self, last: int) -> tuple[int, int]:
        return (self.windows.shape[1] - 1, last)

    def _read(self, path: Path) -> None:
        """Take up whole records; a record that an interruption cut off is removed."""
        whole = path.stat().st_size // self._record.itemsize
        with path.open("r+b") as file:
            records = np.fromfile(file, dtype=self._record, count=whole)
            file.truncate(whole * self._record.itemsize)
        self._known = {int(record["window"]): record for record in records}

    def targets(self, indices: Sequence[int]) -> TeacherTargets:
        """Targets of those windows, on the teacher's device; positions of all windows in one row."""
        missing = [index for index in indices if index not in self._known]
        if missing:
            self._ask(missing)
        records = [self._known[index] for index in indices]
        device = self.decoder.device
        fields = {
            name: torch.from_numpy(np.concatenate([record[name] for record in records])).to(device)
            for name in (self._record.names or ())[1:]
        }
        return TeacherTargets(**fields)

    @torch.no_grad()
    def nll(self, batch: int) -> float:
        """The teacher's own negative log-likelihood on its windows in nats a token, ``batch`` at once."""
        total = 0.0
        for windows in self.windows.split(batch):
            tokens = windows.to(self.decoder.device)
            states = self.decoder.final_norm(self.decoder.hidden_states(tokens[:, :-1])).flatten(0, 1)
            total += negative_log_likelihood(states, self.decoder.head, tokens[:, 1:].flatten()).item()
        return total / (self.windows.numel() - len(self.windows))

    @torch.no_grad()
    def _ask(self, indices: Sequence[int]) -> None:
        tokens = self.windows[list(indices), :-1].to(self.decoder.device)
        states = self.decoder.final_norm(self.decoder.hidden_states(tokens))
        if not torch.isfinite(states).all():
            raise InputError("the teacher's states are NaN or infinite; check its weights")
        found = likeliest(states.flatten(0, 1), self.decoder.head, self.count, self.temperature)
        records = np.empty(len(indices), self._record)
        records["window"] = indices
        for name, values in zip((self._record.names or ())[1:], (*found, states.half()), strict=False):
            records[name] = values.reshape(records[name].shape).cpu().numpy()
        if self.path is not None:
            with self.path.open("ab") as file:
                file.write(records.tobytes())
        self._known.update(zip(indices, records, strict=True))

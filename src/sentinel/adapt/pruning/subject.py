"""What an importance criterion works on: a dense model, calibration text, and how its units may be ranked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from sentinel.adapt.pruning.calibrate import calibrate
from sentinel.adapt.pruning.scores import Scope
from sentinel.adapt.pruning.statistics import Calibration
from sentinel.adapt.text.corpora import Windows
from sentinel.errors import InputError
from sentinel.models.decoder import Decoder
from sentinel.models.token_text import check_ids


class CalibrationText:
    """Calibration ``windows`` of a model, and its statistics over them: gathered when they are first asked for, once for
    all who share this. ``statistics_file`` lets an interrupted calibration go on.

    Raises `InputError` for windows with a token that the model does not have.
    """

    def __init__(self, dense: Decoder, windows: Windows, statistics_file: Path | None = None) -> None:
        check_ids(int(windows.tokens.max()), dense.spec.vocab_size)
        self.windows = windows
        self._dense, self._statistics_file = dense, statistics_file

    @cached_property
    def statistics(self) -> Calibration:
        return calibrate(self._dense, self.windows, self._statistics_file)


@dataclass(frozen=True)
class Subject:
    """The units of ``dense``, to be ranked.

    ``text`` is what to calibrate by, None for criteria that need none. ``scope`` "global" ranks all layers together,
    "uniform" takes the same share of every layer; ``floor_groups`` head groups and ``floor_neurons`` neurons of every
    layer go last.
    """

    dense: Decoder
    text: CalibrationText | None = None
    seed: int = 0
    scope: Scope = "global"
    floor_groups: int = 0
    floor_neurons: int = 0

    @property
    def windows(self) -> Tensor:
        """Calibration tokens [windows, T]; `InputError` where there is no text."""
        return self._text.windows.tokens

    @property
    def statistics(self) -> Calibration:
        """What calibration found; `InputError` where there is no text."""
        return self._text.statistics

    @property
    def _text(self) -> CalibrationText:
        if self.text is None:
            raise InputError("this criterion needs calibration text")
        return self.text

"""Importance criteria: one module each, imported when it is used. `NAMES` are all of them, best first.

A criterion is a `criterion.Criterion`: a class here with a line in the table below.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sentinel.errors import InputError

if TYPE_CHECKING:
    from sentinel.adapt.pruning.criterion import Criterion

# Where the class of each criterion is: its module here, and its name there.
_PLACES = {
    "stepwise": "stepwise:Stepwise",
    "learned": "learned:Learned",
    "fisher": "gate_gradients:Fisher",
    "gradient": "gate_gradients:Gradient",
    "reconstruction": "reconstruction:Reconstruction",
    "entropy": "entropy:Entropy",
    "magnitude": "magnitude:Magnitude",
    "random": "random:Random",
}
NAMES = tuple(_PLACES)
DEFAULT = NAMES[0]
ALL = ("all",)  # how every criterion is asked for


@functools.cache
def criterion_named(name: str) -> Criterion:
    """The criterion of that name; `InputError` names all of them otherwise."""
    if name not in _PLACES:
        raise InputError(f"criterion {name!r} is not known; the criteria are {', '.join(NAMES)}")
    module, _, attribute = _PLACES[name].partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)()


def asked_for(names: Sequence[str]) -> tuple[str, ...]:
    """``names``, or every criterion where they are `ALL`."""
    return NAMES if tuple(names) == ALL else tuple(names)

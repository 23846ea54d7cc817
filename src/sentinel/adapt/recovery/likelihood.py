"""From a mean negative log-likelihood to a perplexity, whatever its size."""

from __future__ import annotations

import math


def perplexity_of(nll: float) -> float:
    """``exp(nll)``; infinite where that is beyond a float (nll above 709), as of a model with broken weights."""
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf


def finite(value: float) -> float | None:
    """``value``, or None where it is infinite: JSON has no word for it."""
    return value if math.isfinite(value) else None

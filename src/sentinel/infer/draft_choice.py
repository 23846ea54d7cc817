"""What may propose tokens to an engine: a quantised copy of its model, or a stored width of it."""

from __future__ import annotations

from dataclasses import dataclass

from sentinel.errors import InputError

PRECISIONS = ("int8", "int4")
_BITS = {"fp32": 32, "int8": 8, "int4": 4}


def parse_ratios(text: str) -> tuple[float, float] | None:
    """What a width leaves out, of ``0.5`` (heads) or ``0.5/0.2`` (heads and neurons); None for anything else."""
    heads, _, neurons = text.partition("/")
    try:
        ratios = float(heads), float(neurons or "0")
    except ValueError:
        return None
    return ratios if all(0 <= ratio < 1 for ratio in ratios) and any(ratios) else None


@dataclass(frozen=True)
class DraftChoice:
    """A ``precision`` of the model's own width, or else a stored width, by the ratios that it leaves out."""

    precision: str | None = None
    heads: float = 0.0
    neurons: float = 0.0

    @classmethod
    def parse(cls, text: str) -> DraftChoice:
        """``int8``, ``int4``, ``0.5`` (of heads), or ``0.5/0.2`` (of heads and neurons); `InputError` for anything else."""
        if text in PRECISIONS:
            return cls(text)
        ratios = parse_ratios(text)
        if ratios is None:
            raise InputError(
                f"a draft is int8, int4, or a stored width as 0.5 (of heads) or 0.5/0.2 (heads/neurons), not {text!r}"
            )
        return cls(None, *ratios)

    def check_cheaper(self, precision: str, heads: float, neurons: float) -> None:
        """Refuse a draft that reads as much as the model itself, which runs in ``precision`` at that width."""
        if self.precision is not None and _BITS[self.precision] >= _BITS[precision]:
            raise InputError(
                f"a draft in {self.precision} is no cheaper than the model in {precision}; take another draft"
            )
        if self.precision is None and (self.heads <= heads and self.neurons <= neurons):
            raise InputError(
                f"a draft of width {self.heads:g}/{self.neurons:g} is no narrower than the model's, {heads:g}/{neurons:g}; "
                "take another draft"
            )

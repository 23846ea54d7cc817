"""How much of a prompt is read between two tokens of the answers under way, so that a long prompt does not stall them."""

from __future__ import annotations

FIRST, LEAST = 32, 4  # tokens of a piece
HELD_UP = 1.4  # of the time of a step: what reading a piece should take at most
CALM = 1.0  # likewise: where it takes less, pieces grow
MOST_SHRINK, GROW = 0.5, 1.25  # from one piece to the next


class PieceRule:
    """The size of a piece, found by the time that pieces and steps take on this machine.

    While nobody is answered a piece is as long as the engine takes in one pass. Beside answers it shrinks until reading it
    takes no longer than `HELD_UP` steps, so that a token comes after some 2.5 times its usual time at most, and it grows
    again as steps of more answers get longer.
    """

    def __init__(self) -> None:
        self._size = float(FIRST)

    def size(self, most: int, *, answering: bool) -> int:
        """Tokens of the next piece, at most ``most``."""
        return min(most, round(self._size)) if answering else most

    def saw(self, n_token: int, read_s: float, step_s: float, most: int) -> None:
        """A piece of so many tokens was read, and then a step was made, in so many seconds."""
        if n_token < self.size(most, answering=True):
            return  # the rest of a prompt tells nothing of whole pieces
        if read_s > HELD_UP * step_s:
            self._size = max(LEAST, self._size * max(MOST_SHRINK, HELD_UP * step_s / read_s))
        elif read_s < CALM * step_s:
            self._size = min(float(most), self._size * GROW)

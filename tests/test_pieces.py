"""Pieces of prompts beside answers: as long as their reading takes some steps' time, no longer."""

from __future__ import annotations

import pytest

from sentinel.infer.pieces import FIRST, LEAST, PieceRule


@pytest.mark.parametrize(
    ("per_token_s", "step_s", "low", "high"),
    [(0.0017, 0.0086, 4, 8), (0.0004, 0.0086, 20, 31), (0.0004, 0.1, 128, 128), (1.0, 0.001, LEAST, LEAST)],
)
def test_pieces_find_the_size_that_holds_answers_up_for_a_step_or_so(per_token_s, step_s, low, high):
    rule = PieceRule()
    for _ in range(20):
        size = rule.size(128, answering=True)
        rule.saw(size, size * per_token_s, step_s, 128)
    assert low <= rule.size(128, answering=True) <= high
    assert rule.size(128, answering=False) == 128  # nobody waits for a token


def test_a_long_piece_is_followed_by_short_ones_at_once_and_the_rest_of_a_prompt_tells_nothing():
    rule = PieceRule()
    rule.saw(FIRST, 0.1, 0.01, 128)
    assert rule.size(128, answering=True) == FIRST // 2
    rule.saw(3, 0.1, 0.01, 128)
    assert rule.size(128, answering=True) == FIRST // 2
    assert rule.size(4, answering=True) == 4

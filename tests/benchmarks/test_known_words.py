"""Models that count, against counts that can be made by hand."""

from __future__ import annotations

import math

import pytest
from benchmarks.known_words import counted_losses


def test_losses_are_those_of_counts_by_hand() -> None:
    train, held_out = [[0, 1, 0, 1, 0, 2]], [[0, 1], [2, 0, 2]]
    single, pair, tokens = counted_losses(train, held_out, 4)
    # counts 3, 2, 1, 0 of six tokens, and one more each: 4, 3, 2, 1 of ten
    assert tokens == 3
    assert single == pytest.approx(-(math.log(0.3) + math.log(0.4) + math.log(0.2)) / 3)
    # 0 was followed by 1 twice and by 2 once, two kinds in three; nothing ever followed 2
    after = {1: (2 + 2 * 0.3) / 5, 2: (1 + 2 * 0.2) / 5}
    assert pair == pytest.approx(-(math.log(after[1]) + math.log(0.4) + math.log(after[2])) / 3)


def test_each_model_gives_a_distribution() -> None:
    train = [[0, 1, 0, 1, 0, 2], [3, 3, 1]]
    for before in range(4):
        chances = [math.exp(-counted_losses(train, [[before, token]], 4)[1]) for token in range(4)]
        assert sum(chances) == pytest.approx(1)

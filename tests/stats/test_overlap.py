"""Jaccard index, its chance level and its p, against enumeration of every random set."""

from __future__ import annotations

import math
from itertools import combinations

import pytest

from engramscope.stats.overlap import overlap


@pytest.mark.parametrize(("a", "b", "common"), [(3, 2, 1), (3, 3, 3), (2, 4, 0), (4, 4, 2), (1, 5, 1)])
def test_chance_and_p_are_those_of_all_random_sets(a: int, b: int, common: int) -> None:
    cells = 7
    first = set(range(a))
    second = set(range(a - common, a - common + b))
    drawn = [set(one) for one in combinations(range(cells), b)]
    values = [len(first & one) / len(first | one) for one in drawn]
    found = overlap(first, second, cells)
    assert found.common == common
    assert found.jaccard == pytest.approx(common / (a + b - common), abs=1e-12)
    assert found.chance == pytest.approx(sum(values) / len(values), abs=1e-12)
    assert found.p == pytest.approx(sum(len(first & one) >= common for one in drawn) / len(drawn), abs=1e-12)


def test_it_does_not_matter_which_comes_first() -> None:
    one, other = {1, 2, 3}, {3, 9}
    there, back = overlap(one, other, 20), overlap(other, one, 20)
    assert there.jaccard == pytest.approx(back.jaccard)
    assert there.chance == pytest.approx(back.chance, abs=1e-12)
    assert there.p == pytest.approx(back.p, abs=1e-12)


def test_empty_sets_say_nothing() -> None:
    assert math.isnan(overlap([], [], 5).jaccard)
    one = overlap([1], [], 5)
    assert (one.jaccard, one.chance, one.p) == (0.0, 0.0, 1.0)


def test_more_members_than_cells_are_refused() -> None:
    with pytest.raises(ValueError, match="only 3"):
        overlap([1, 2], [3, 4], 3)

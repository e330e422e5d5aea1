"""Zero, mean and resample ablation: what is written, and from which pairs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import corruption_cases as cases
import pytest

from engramscope.corruptions import make_corruption
from engramscope.corruptions._base import Donor, Mean, Zero
from engramscope.errors import PairsError, StudyError
from engramscope.pairs.tokenized import TokenizedPair


def of_lengths(*lengths: int) -> list[TokenizedPair]:
    """Pairs whose clean prompts have these numbers of tokens, all different."""
    base = cases.make_pairs(["Ada Byron"])[0]
    return [
        cases.tokenized(
            replace(base, id=f"p{i}", clean=" ".join(f"w{i}{j}" for j in range(n)), corrupted=None, spans={})
        )
        for i, n in enumerate(lengths)
    ]


def with_ids(*ids: int) -> list[TokenizedPair]:
    """Pairs of three tokens whose last token is given."""
    pairs = of_lengths(*[3] * len(ids))
    return [replace(p, clean=replace(p.clean, ids=(0, 0, i))) for p, i in zip(pairs, ids, strict=True)]


def test_zero_writes_zero_everywhere() -> None:
    assert make_corruption("zero", {}).ablations(of_lengths(3, 4), 0) == [[Zero()], [Zero()]]


def test_mean_goes_by_position_where_all_lengths_are_equal() -> None:
    everyone = Mean((0, 1, 2), per_position=True)
    assert make_corruption("mean", {}).ablations(of_lengths(4, 4, 4), 0) == [[everyone]] * 3
    pooled = Mean((0, 1, 2), per_position=False)
    assert make_corruption("mean", {"positions": "all"}).ablations(of_lengths(4, 4, 4), 0) == [[pooled]] * 3


def test_mean_pools_positions_where_lengths_differ() -> None:
    pooled = Mean((0, 1, 2), per_position=False)
    assert make_corruption("mean", {}).ablations(of_lengths(4, 5, 4), 0) == [[pooled]] * 3


def test_mean_by_position_stays_among_equals() -> None:
    found = make_corruption("mean", {"positions": "each"}).ablations(of_lengths(4, 5, 4, 6, 5), 0)
    four, five = Mean((0, 2), per_position=True), Mean((1, 4), per_position=True)
    assert found == [[four], [five], [four], [], [five]]


def test_mean_needs_a_reference_set() -> None:
    for pairs in ([], of_lengths(4)):
        with pytest.raises(PairsError, match="at least 2"):
            make_corruption("mean", {}).ablations(pairs, 0)
    with pytest.raises(PairsError, match="all 3 prompts have different lengths"):
        make_corruption("mean", {"positions": "each"}).ablations(of_lengths(3, 4, 5), 0)
    with pytest.raises(StudyError, match="option 'positions'"):
        make_corruption("mean", {"positions": "every"})


def test_donors_are_other_pairs_of_equal_length_with_other_tokens() -> None:
    pairs = of_lengths(4, 4, 5, 4, 4, 5, 6, 4)
    found = make_corruption("resample", {"draws": 3}).ablations(pairs, 0)
    for me, draws in enumerate(found):
        donors = [draw.pair for draw in draws if isinstance(draw, Donor)]
        assert [draw.seed for draw in draws if isinstance(draw, Donor)] == list(range(len(draws)))
        assert me not in donors
        assert len(set(donors)) == len(donors)
        assert all(len(pairs[donor].clean) == len(pairs[me].clean) for donor in donors)
    assert [len(draws) for draws in found] == [3, 3, 1, 3, 3, 1, 0, 3]


def test_a_donor_with_the_same_tokens_would_change_nothing() -> None:
    found = make_corruption("resample", {}).ablations(with_ids(1, 1, 2), 0)
    assert [[d.pair for d in draws if isinstance(d, Donor)] for draws in found] == [[2], [2], sorted_donors(found[2])]
    assert sorted_donors(found[2]) in ([0, 1], [1, 0])
    assert make_corruption("resample", {}).ablations(with_ids(5, 5), 0) == [[], []]
    assert make_corruption("resample", {}).ablations(with_ids(5), 0) == [[]]


def sorted_donors(draws: list) -> list[int]:
    return [draw.pair for draw in draws]


def test_more_draws_leave_the_first_ones_as_they_are() -> None:
    pairs = of_lengths(*[4] * 12)
    few = make_corruption("resample", {"draws": 2}).ablations(pairs, 7)
    many = make_corruption("resample", {"draws": 9}).ablations(pairs, 7)
    assert [draws[:2] for draws in many] == few


def test_limiting_the_set_only_removes_donors() -> None:
    pairs = of_lengths(*[4] * 12)
    how = make_corruption("resample", {"draws": 11})
    whole, part = how.ablations(pairs, 0), how.ablations(pairs[:6], 0)
    for draws, fewer in zip(whole[:6], part, strict=True):
        assert [d for d in sorted_donors(draws) if d < 6] == sorted_donors(fewer)


def test_every_donor_is_equally_likely() -> None:
    pairs = of_lengths(*[4] * 5)
    how = make_corruption("resample", {"draws": 1})
    counts = Counter(how.ablations(pairs, seed)[0][0].pair for seed in range(1200))  # type: ignore[union-attr]
    assert set(counts) == {1, 2, 3, 4}
    # 300 expected each, sd 15
    assert all(abs(count - 300) < 75 for count in counts.values()), counts


def test_donors_differ_from_pair_to_pair() -> None:
    pairs = of_lengths(*[4] * 40)
    found = make_corruption("resample", {"draws": 3}).ablations(pairs, 0)
    orders = [sorted_donors(draws) for draws in found]
    assert sum(a == b for a, b in pairwise(orders)) == 0


@pytest.mark.parametrize("draws", [0, -1, 1.5, True, "2"])
def test_draws_out_of_range(draws: object) -> None:
    with pytest.raises(StudyError, match="option 'draws'"):
        make_corruption("resample", {"draws": draws})

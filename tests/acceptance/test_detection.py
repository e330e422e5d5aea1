"""Acceptance check D1, from the distribution of the statistic; tests/stats/test_estimates.py has it by simulation."""

from __future__ import annotations

import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from engramscope.stats.two_sd import two_sd

CELLS = 144


def expected_detections(cells: int) -> float:
    """How many of so many independent Gaussian cells lie more than 2 SD (ddof = 1) from their mean, on average.

    `((x - mean) / sd)^2 n / (n - 1)^2` has the distribution Beta(1/2, (n - 2) / 2).
    """
    return float(cells * stats.beta(0.5, (cells - 2) / 2).sf(4 * cells / (cells - 1) ** 2))


def test_d1_the_rule_marks_6_4_of_144_cells_that_hold_nothing() -> None:
    """D1: 2-SD rule on Gaussian null, 144 cells: 6.4 +- .3 detections, as the distribution says; half of them up."""
    rng = np.random.default_rng(0)
    marks = np.array([[rule.detected, rule.detected & (row > rule.mean)]
                      for row in rng.normal(size=(4000, CELLS)) for rule in [two_sd(row)]])  # fmt: skip
    found, upwards = marks.sum(axis=2).mean(axis=0)
    assert abs(found - 6.4) < 0.3
    assert_allclose(expected_detections(CELLS), 6.4, atol=0.1)
    # 4000 sweeps: the standard error of the mean is below 0.04
    assert_allclose(found, expected_detections(CELLS), atol=0.12)
    assert_allclose(upwards, found / 2, atol=0.12)


def test_d1_depends_on_neither_unit_nor_offset() -> None:
    """D1: the rule compares cells with one another, so scale, offset and sign are nothing to it."""
    null = np.random.default_rng(1).normal(size=CELLS)
    marked = two_sd(null).detected
    assert 0 < marked.sum() < CELLS
    for scale, offset in ((1e-6, 0.0), (-3.0, 40.0)):
        assert_array_equal(two_sd(scale * null + offset).detected, marked)


def test_d1_fewer_than_six_cells_cannot_be_told_apart() -> None:
    """D1: no value lies more than (n - 1) / sqrt(n) SD from a mean that it is part of; with five cells that is 1.79."""
    for cells in range(1, 9):
        one = np.zeros(cells)
        one[0] = 1e9
        assert_array_equal(two_sd(one).detected, (np.arange(cells) == 0) & (cells >= 6))

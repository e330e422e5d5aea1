"""How much of the effect lies at one class of positions against another: sums over layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from engramscope.replications._effects import Estimate, NotMeasuredError, Table, profile
from engramscope.replications._measures._base import MeasureOptions, NumberMeasure, Read, SweepOptions
from engramscope.replications._results import Results
from engramscope.results.schema import Frame


class PositionRatioOptions(SweepOptions):
    """Options of `position_ratio`.

    Attributes:
        above, below: the two classes of positions.
    """

    above: str = "subject_last"
    below: str = "subject_middle"


class PositionRatio(NumberMeasure[PositionRatioOptions]):
    """`Σ over layers at the one class / Σ over layers at the other`, class values averaged within a prompt first.

    Whether the paper averages or sums the tokens of a class is not stated; with sums the ratio is `with_sums`.
    """

    Options: ClassVar[type[MeasureOptions]] = PositionRatioOptions

    def reads(self) -> Sequence[Read]:
        """The sweep over positions."""
        return ((self.options.arm, self.options.sweep, self.options.metric),)

    def number(self, results: Results) -> tuple[Estimate, Mapping[str, Any]]:
        """The ratio; both sums, and the ratio with sums within a class, beside it."""
        arm = results.arm(self.options.arm)
        table = arm.table(self.options.sweep, self.options.metric)
        above = sum(profile(table, self.options.above, self.options.scale).values())
        below = sum(profile(table, self.options.below, self.options.scale).values())
        if below <= 0:
            raise NotMeasuredError(
                f"the sum over layers at {self.options.below!r} is not positive, so there is no ratio"
            )
        detail = {self.options.above: above, self.options.below: below}
        rows = arm.effects if self.options.sweep is None else arm.effects[arm.effects["sweep"] == self.options.sweep]
        summed = [_of_sums(table, rows, role) for role in (self.options.above, self.options.below)]
        if summed[1]:
            detail["with_sums"] = summed[0] / summed[1]
        return Estimate(above / below), detail


def _of_sums(table: Table, rows: Frame, role: str) -> float:
    """Sum over layers of the mean over prompts of the *sum* over the tokens of a class."""
    tokens: Frame = rows[rows["position_role"] == role].groupby("pair")["position"].nunique()
    counts = tokens.reindex(list(table.pairs)).to_numpy(dtype=float)
    layers = sorted({int(layer) for layer in table.cells["layer"].dropna()})
    each = [table.series(table.columns(layer, role=role)) * counts for layer in layers]
    return float(sum(np.nanmean(one) for one in each if not np.isnan(one).all()))


COMPONENT = PositionRatio

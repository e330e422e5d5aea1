"""Mean or standard deviation over all cells of a sweep, by which the 2-SD rule is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from engramscope.replications._effects import Estimate
from engramscope.replications._measures._base import MeasureOptions, NumberMeasure, Read, SweepOptions
from engramscope.replications._results import Results
from engramscope.stats.two_sd import two_sd


class SpreadOptions(SweepOptions):
    """Options of `spread`.

    Attributes:
        statistic: "mean" or "sd" (n - 1) of the cells' mean effects.
    """

    statistic: Literal["mean", "sd"]


class Spread(NumberMeasure[SpreadOptions]):
    """The mean, or the SD, of the mean effects of all cells."""

    Options: ClassVar[type[MeasureOptions]] = SpreadOptions

    def reads(self) -> Sequence[Read]:
        """The sweep."""
        return ((self.options.arm, self.options.sweep, self.options.metric),)

    def number(self, results: Results) -> tuple[Estimate, Mapping[str, Any]]:
        """The statistic; the number of cells beside it."""
        table = results.arm(self.options.arm).table(self.options.sweep, self.options.metric)
        rule = two_sd([table.mean(np.array([column]), self.options.scale) for column in range(len(table.cells))])
        return Estimate(rule.mean if self.options.statistic == "mean" else rule.sd), {"cells": len(table.cells)}


COMPONENT = Spread

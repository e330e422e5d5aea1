"""Among how many cells of a sweep the effect is spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from engramscope.replications._effects import Estimate, participation_ratio
from engramscope.replications._measures._base import MeasureOptions, NumberMeasure, Read, SweepOptions
from engramscope.replications._results import Results


class ParticipationRatio(NumberMeasure[SweepOptions]):
    """`(Σ e²)² / Σ e⁴` over the mean effects of all cells: 1 = a single cell, n = n cells alike."""

    Options: ClassVar[type[MeasureOptions]] = SweepOptions

    def reads(self) -> Sequence[Read]:
        """The sweep."""
        return ((self.options.arm, self.options.sweep, self.options.metric),)

    def number(self, results: Results) -> tuple[Estimate, Mapping[str, Any]]:
        """The ratio; the number of cells beside it."""
        table = results.arm(self.options.arm).table(self.options.sweep, self.options.metric)
        means = np.array([table.mean(np.array([column]), "effect") for column in range(len(table.cells))])
        return Estimate(participation_ratio(means)), {"cells": len(means)}


COMPONENT = ParticipationRatio

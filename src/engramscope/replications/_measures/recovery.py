"""The pooled recovery of one cell: 0 as corrupted, 1 as clean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from engramscope.replications._effects import Estimate
from engramscope.replications._measures._base import MeasureOptions, NumberMeasure, Read
from engramscope.replications._measures._cells import CellOptions, cell_estimate
from engramscope.replications._results import Results


class RecoveryOptions(CellOptions):
    """Options of `recovery`."""


class Recovery(NumberMeasure[RecoveryOptions]):
    """`Σ (patched - corrupted) / Σ (clean - corrupted)` over all pairs: a ratio of means."""

    Options: ClassVar[type[MeasureOptions]] = RecoveryOptions

    def reads(self) -> Sequence[Read]:
        """The cell's sweep."""
        return ((self.options.arm, self.options.sweep, self.options.metric),)

    def number(self, results: Results) -> tuple[Estimate, Mapping[str, Any]]:
        """The recovery of the cell."""
        return cell_estimate(self.options, "recovery", results)


COMPONENT = Recovery

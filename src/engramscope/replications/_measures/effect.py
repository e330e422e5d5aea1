"""The mean effect of one cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from engramscope.replications._effects import Estimate
from engramscope.replications._measures._base import MeasureOptions, NumberMeasure, Read, SweepPart
from engramscope.replications._measures._cells import CellOptions, cell_estimate
from engramscope.replications._results import Results


class EffectOptions(CellOptions, SweepPart):
    """Options of `effect`; `scale = "recovery"` for a normalised logit difference."""


class Effect(NumberMeasure[EffectOptions]):
    """Mean over pairs of metric(patched) - metric(corrupted), positive where it helps; or that over the mean gap."""

    Options: ClassVar[type[MeasureOptions]] = EffectOptions

    def reads(self) -> Sequence[Read]:
        """The cell's sweep."""
        return ((self.options.arm, self.options.sweep, self.options.metric),)

    def number(self, results: Results) -> tuple[Estimate, Mapping[str, Any]]:
        """The effect of the cell."""
        return cell_estimate(self.options, self.options.scale, results)


COMPONENT = Effect

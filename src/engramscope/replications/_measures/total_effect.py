"""The total effect of the corruption: mean of clean minus corrupted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from engramscope.replications._effects import Estimate, baseline_of
from engramscope.replications._measures._base import MeasureOptions, NumberMeasure, NumberOptions, Read
from engramscope.replications._results import Results


class TotalEffectOptions(NumberOptions):
    """Options of `total_effect`."""

    arm: str
    metric: str = "prob"


class TotalEffect(NumberMeasure[TotalEffectOptions]):
    """`TE = mean over prompts of (metric(clean) - mean over draws of metric(corrupted))`."""

    Options: ClassVar[type[MeasureOptions]] = TotalEffectOptions

    def reads(self) -> Sequence[Read]:
        """Any sweep of the arm: they share their baselines."""
        return ((self.options.arm, "", self.options.metric),)

    def number(self, results: Results) -> tuple[Estimate, Mapping[str, Any]]:
        """The mean."""
        return baseline_of(results.arm(self.options.arm).effects, self.options.metric, "gap"), {}


COMPONENT = TotalEffect

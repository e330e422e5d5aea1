"""The mean of an unpatched run's metric: how well the model does on clean or on corrupted prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from engramscope.replications._effects import Estimate, baseline_of
from engramscope.replications._measures._base import MeasureOptions, NumberMeasure, NumberOptions, Read
from engramscope.replications._results import Results


class BaselineOptions(NumberOptions):
    """Options of `baseline`."""

    arm: str
    metric: str
    run: Literal["clean", "corrupted"]


class Baseline(NumberMeasure[BaselineOptions]):
    """Mean over pairs, draws averaged within a pair."""

    Options: ClassVar[type[MeasureOptions]] = BaselineOptions

    def reads(self) -> Sequence[Read]:
        """Any sweep of the arm: they share their baselines."""
        return ((self.options.arm, "", self.options.metric),)

    def number(self, results: Results) -> tuple[Estimate, Mapping[str, Any]]:
        """The mean."""
        return baseline_of(results.arm(self.options.arm).effects, self.options.metric, self.options.run), {}


COMPONENT = Baseline

"""How much a window does beyond its single layers: the peak of the windows over the peak of the sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from engramscope.replications._effects import Estimate, NotMeasuredError
from engramscope.replications._measures._base import MeasureOptions, NumberMeasure, ProfileOptions, Read
from engramscope.replications._measures._profiles import peak_of, read_of
from engramscope.replications._results import Results


class PeakRatio(NumberMeasure[ProfileOptions]):
    """`max over the layers looked at of the sliding window / max over them of the sum of its single layers`."""

    Options: ClassVar[type[MeasureOptions]] = ProfileOptions

    def reads(self) -> Sequence[Read]:
        """The sweep of windows."""
        return read_of(self.options)

    def number(self, results: Results) -> tuple[Estimate, Mapping[str, Any]]:
        """The ratio; both peaks beside it."""
        above, sliding = peak_of(self.options.model_copy(update={"of": "sliding"}), results)
        below, singles = peak_of(self.options.model_copy(update={"of": "sum"}), results)
        if singles.value <= 0:
            raise NotMeasuredError("no sum of single layers is positive there, so there is no ratio")
        detail = {"sliding": sliding.value, "sliding_layer": above, "sum": singles.value, "sum_layer": below}
        return Estimate(sliding.value / singles.value), detail


COMPONENT = PeakRatio

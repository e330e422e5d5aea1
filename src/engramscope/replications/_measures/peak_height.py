"""The height of the peak of a profile over layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from engramscope.replications._effects import Estimate
from engramscope.replications._measures._base import MeasureOptions, NumberMeasure, ProfileOptions, Read
from engramscope.replications._measures._profiles import peak_of, read_of
from engramscope.replications._results import Results


class PeakHeight(NumberMeasure[ProfileOptions]):
    """The highest value among the layers that are looked at."""

    Options: ClassVar[type[MeasureOptions]] = ProfileOptions

    def reads(self) -> Sequence[Read]:
        """The profile's sweep."""
        return read_of(self.options)

    def number(self, results: Results) -> tuple[Estimate, Mapping[str, Any]]:
        """The height; the layer beside it."""
        layer, height = peak_of(self.options, results)
        return height, {"layer": layer}


COMPONENT = PeakHeight

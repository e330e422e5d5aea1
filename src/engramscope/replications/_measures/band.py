"""The mean over a band of layers at one position: whether it is positive or negative there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from engramscope.replications._effects import Estimate, NotMeasuredError
from engramscope.replications._measures._base import MeasureOptions, NumberMeasure, ProfileOptions, Read
from engramscope.replications._measures._profiles import between, profile_of, read_of
from engramscope.replications._results import Results


class Band(NumberMeasure[ProfileOptions]):
    """The mean of a profile over the layers that are looked at."""

    Options: ClassVar[type[MeasureOptions]] = ProfileOptions

    def reads(self) -> Sequence[Read]:
        """The profile's sweep."""
        return read_of(self.options)

    def number(self, results: Results) -> tuple[Estimate, Mapping[str, Any]]:
        """The mean; the layers beside it."""
        values = profile_of(self.options, results)
        first, last = between(self.options, results) or (min(values), max(values))
        inside = [value for layer, value in values.items() if first <= layer <= last]
        if not inside:
            raise NotMeasuredError(f"no layer lies between {first} and {last}")
        return Estimate(float(np.mean(inside))), {"layers": [first, last]}


COMPONENT = Band

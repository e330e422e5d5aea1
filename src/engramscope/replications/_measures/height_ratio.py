"""The peak of one arm over the peak of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from engramscope.replications._effects import Estimate, NotMeasuredError
from engramscope.replications._measures._base import MeasureOptions, NumberMeasure, ProfileOptions, Read
from engramscope.replications._measures._profiles import peak_of, read_of
from engramscope.replications._results import Results


class HeightRatioOptions(ProfileOptions):
    """Options of `height_ratio`.

    Attributes:
        over: the other arm, which the peak of `arm` is divided by that of.
    """

    over: str


class HeightRatio(NumberMeasure[HeightRatioOptions]):
    """`peak of arm / peak of over`, each among the layers that are looked at."""

    Options: ClassVar[type[MeasureOptions]] = HeightRatioOptions

    def reads(self) -> Sequence[Read]:
        """The same sweep in both arms."""
        other = self.options.model_copy(update={"arm": self.options.over})
        return (*read_of(self.options), *read_of(other))

    def number(self, results: Results) -> tuple[Estimate, Mapping[str, Any]]:
        """The ratio; both heights beside it."""
        _, above = peak_of(self.options, results)
        _, below = peak_of(self.options.model_copy(update={"arm": self.options.over}), results)
        if below.value <= 0:
            raise NotMeasuredError(f"arm {self.options.over!r} has no positive peak there, so there is no ratio")
        heights = {self.options.arm: above.value, self.options.over: below.value}
        return Estimate(above.value / below.value), {"heights": heights}


COMPONENT = HeightRatio

"""The layer at which a profile peaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from engramscope.replications import _verdict
from engramscope.replications._measures._base import Measure, Measured, MeasureOptions, ProfilePart, Read
from engramscope.replications._measures._profiles import peak_of, read_of
from engramscope.replications._results import Results
from engramscope.replications._verdict import Verdict


class PeakLayerOptions(ProfilePart):
    """Options of `peak_layer`.

    Attributes:
        published: the layer, or several where the plot does not tell them apart; empty where none is published.
        within: so many layers away still agrees.
    """

    published: tuple[int, ...] = ()
    within: int = Field(default=2, ge=0)


class PeakLayer(Measure[PeakLayerOptions]):
    """The layer of the highest value among those that are looked at."""

    Options: ClassVar[type[MeasureOptions]] = PeakLayerOptions

    def reads(self) -> Sequence[Read]:
        """The profile's sweep."""
        return read_of(self.options)

    def published(self) -> str:
        """The layer or layers, and the allowance."""
        layers = " or ".join(map(str, self.options.published))
        return f"layer {layers} ± {self.options.within}" if layers else ""

    def measure(self, results: Results) -> Measured:
        """The layer; the height beside it."""
        layer, height = peak_of(self.options, results)
        return Measured(layer, f"layer {layer}", {"height": height.value})

    def judge(self, measured: Measured) -> Verdict:
        """At most so many layers away."""
        return _verdict.layers(int(measured.value), self.options.published, self.options.within)


COMPONENT = PeakLayer

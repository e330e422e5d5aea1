"""The head with the largest effect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from engramscope.replications._effects import detection
from engramscope.replications._measures._base import Measure, Measured, MeasureOptions, Read
from engramscope.replications._results import Results
from engramscope.replications._verdict import DIFFERS, REPRODUCED, Verdict


class LargestHeadOptions(MeasureOptions):
    """Options of `largest_head`.

    Attributes:
        arm: the study.
        sweep: its sweep of heads; None where it has one only.
        metric: name of the metric.
        role: the position; None for all of the sweep.
        published: the head, "layer.head"; "" where none is published.
    """

    arm: str
    sweep: str | None = None
    metric: str
    role: str | None = None
    published: str = ""


class LargestHead(Measure[LargestHeadOptions]):
    """The head that helps most: the highest mean effect of all."""

    Options: ClassVar[type[MeasureOptions]] = LargestHeadOptions

    def reads(self) -> Sequence[Read]:
        """The sweep of heads."""
        return ((self.options.arm, self.options.sweep, self.options.metric),)

    def published(self) -> str:
        """The head."""
        return f"head {self.options.published}" if self.options.published else ""

    def measure(self, results: Results) -> Measured:
        """The head; the three largest with their distances from the mean beside it."""
        found = detection(
            results.arm(self.options.arm).table(self.options.sweep, self.options.metric), self.options.role
        )
        ranked = sorted(found.z, key=lambda head: -found.z[head])
        return Measured(ranked[0], f"head {ranked[0]}", {"z": {head: round(found.z[head], 3) for head in ranked[:3]}})

    def judge(self, measured: Measured) -> Verdict:
        """It is the published one."""
        same = measured.value == self.options.published
        return Verdict(REPRODUCED) if same else Verdict(DIFFERS, "another head is the largest")


COMPONENT = LargestHead

"""How many heads of each known class the 2-SD rule detects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from engramscope.replications import _verdict
from engramscope.replications._effects import NotMeasuredError, detection
from engramscope.replications._measures._base import Measure, Measured, MeasureOptions, Read
from engramscope.replications._results import Results
from engramscope.replications._verdict import NEAR, Verdict


class ClassCountsOptions(MeasureOptions):
    """Options of `class_counts`.

    Attributes:
        arm: the study.
        sweep: its sweep of heads; None where it has one only.
        metric: name of the metric.
        classes: class -> its heads in the published model.
        near: heads within so many SD of the line may count on either side.
        published: class -> how many of them are detected.
    """

    arm: str
    sweep: str | None = None
    metric: str
    classes: dict[str, list[str]]
    near: float = Field(default=NEAR, ge=0)
    published: dict[str, int] = Field(default_factory=dict)


class ClassCounts(Measure[ClassCountsOptions]):
    """Detected members of each class, whatever their sign; the classes are heads of the published model."""

    Options: ClassVar[type[MeasureOptions]] = ClassCountsOptions

    def reads(self) -> Sequence[Read]:
        """The sweep of heads."""
        return ((self.options.arm, self.options.sweep, self.options.metric),)

    def published(self) -> str:
        """The counts, in words."""
        return self._words(self.options.published)

    def measure(self, results: Results) -> Measured:
        """The counts; those without and with the heads near the line beside them."""
        if not results.published:
            raise NotMeasuredError(f"the classes are heads of {results.model}")
        found = detection(results.arm(self.options.arm).table(self.options.sweep, self.options.metric))
        marked = {*found.positive, *found.negative}
        near = {head for head in found.z if found.near(head, self.options.near)}
        classes = self.options.classes.items()
        value = {name: len(marked & set(heads)) for name, heads in classes}
        least = {name: len((marked - near) & set(heads)) for name, heads in classes}
        most = {name: len((marked | near) & set(heads)) for name, heads in classes}
        members = {name: sorted(marked & set(heads)) for name, heads in classes}
        return Measured(value, self._words(value), {"least": least, "most": most, "members": members})

    def judge(self, measured: Measured) -> Verdict:
        """The counts agree, but for heads near the line."""
        detail = measured.detail
        return _verdict.counts(measured.value, detail["least"], detail["most"], self.options.published)

    def _words(self, counts: dict[str, int]) -> str:
        return ", ".join(f"{name} {count}/{len(self.options.classes.get(name, ()))}" for name, count in counts.items())


COMPONENT = ClassCounts

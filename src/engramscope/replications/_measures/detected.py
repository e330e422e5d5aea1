"""The heads that the 2-SD rule detects, signs kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from engramscope.replications import _verdict
from engramscope.replications._effects import detection
from engramscope.replications._measures._base import Measure, Measured, MeasureOptions, Read, listed
from engramscope.replications._results import Results
from engramscope.replications._verdict import NEAR, Detection, HeadSets, Verdict


class HeadLists(MeasureOptions):
    """Heads as published; see `HeadSets`."""

    positive: tuple[str, ...] | None = None
    negative: tuple[str, ...] | None = None
    either: tuple[str, ...] | None = None
    includes_positive: tuple[str, ...] = ()
    includes_negative: tuple[str, ...] = ()
    includes: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()

    @property
    def sets(self) -> HeadSets:
        """The same as the verdict takes them."""
        return HeadSets(**self.model_dump())

    @property
    def words(self) -> str:
        """The sets, in words."""
        whole = (("+", self.positive), ("−", self.negative), ("+ or −", self.either))
        some = (("among +", self.includes_positive), ("among −", self.includes_negative),
                ("among them", self.includes), ("not", self.excludes))  # fmt: skip
        parts = [f"{sign} {listed(heads)}" for sign, heads in whole if heads is not None]
        return "; ".join([*parts, *(f"{sign} {listed(heads)}" for sign, heads in some if heads)])


class DetectedOptions(MeasureOptions):
    """Options of `detected`.

    Attributes:
        arm: the study.
        sweep: its sweep of heads; None where it has one only.
        metric: name of the metric.
        role: only heads at this position are listed; the rule is drawn over all positions of the sweep.
        near: a head that is missing or too many still counts within so many SD of the line.
        published: the heads.
    """

    arm: str
    sweep: str | None = None
    metric: str
    role: str | None = None
    near: float = Field(default=NEAR, ge=0)
    published: HeadLists = HeadLists()


class Detected(Measure[DetectedOptions]):
    """Heads whose mean effect lies more than 2 SD from the mean over all cells of the sweep; positive ones help."""

    Options: ClassVar[type[MeasureOptions]] = DetectedOptions

    def reads(self) -> Sequence[Read]:
        """The sweep of heads."""
        return ((self.options.arm, self.options.sweep, self.options.metric),)

    def published(self) -> str:
        """The sets, in words."""
        return self.options.published.words

    def measure(self, results: Results) -> Measured:
        """The detected heads; distances from the mean beside them."""
        found = detection(
            results.arm(self.options.arm).table(self.options.sweep, self.options.metric), self.options.role
        )
        value = {"positive": list(found.positive), "negative": list(found.negative)}
        listed_heads = {*found.positive, *found.negative, *self.options.published.sets.named}
        far = {head: round(found.z[head], 3) for head in sorted(found.z) if head in listed_heads}
        near = {head: round(z, 3) for head, z in found.z.items() if found.near(head, self.options.near)}
        text = f"+ {listed(found.positive)}; − {listed(found.negative)}"
        return Measured(value, text, {"z": {**near, **far}})

    def judge(self, measured: Measured) -> Verdict:
        """The sets agree, but for heads near the line."""
        return _verdict.heads(Detection(measured.detail["z"]), self.options.published.sets, self.options.near)


COMPONENT = Detected

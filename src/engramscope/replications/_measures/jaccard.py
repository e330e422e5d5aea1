"""How far the detected heads agree with the published ones, where only more than chance can be asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from engramscope.replications import _verdict
from engramscope.replications._effects import detection
from engramscope.replications._measures._base import Measure, Measured, MeasureOptions, Read, listed, shown
from engramscope.replications._measures.detected import HeadLists
from engramscope.replications._results import Results
from engramscope.replications._verdict import Verdict
from engramscope.stats.overlap import overlap


class JaccardOptions(MeasureOptions):
    """Options of `jaccard`.

    Attributes:
        arm: the study.
        sweep: its sweep of heads; None where it has one only.
        metric: name of the metric.
        level: the overlap must be less likely by chance than this.
        published: the heads; `positive` and `negative`.
    """

    arm: str
    sweep: str | None = None
    metric: str
    level: float = Field(default=0.05, gt=0, lt=1)
    published: HeadLists = HeadLists()


class Jaccard(Measure[JaccardOptions]):
    """Jaccard index of the (head, sign) that the 2-SD rule detects and those published, against random sets.

    For rows that depend on the draw of the noise. Chance: a random set of as many of the sweep's heads, each of which
    could have either sign.
    """

    Options: ClassVar[type[MeasureOptions]] = JaccardOptions

    def reads(self) -> Sequence[Read]:
        """The sweep of heads."""
        return ((self.options.arm, self.options.sweep, self.options.metric),)

    def published(self) -> str:
        """The sets, in words."""
        words = self.options.published.words
        return f"above chance (p ≤ {self.options.level:g}) with {words}" if words else ""

    def measure(self, results: Results) -> Measured:
        """The index; its expectation and probability by chance, and the detected heads, beside it."""
        found = detection(results.arm(self.options.arm).table(self.options.sweep, self.options.metric))
        measured = {*((head, "+") for head in found.positive), *((head, "−") for head in found.negative)}
        sets = self.options.published.sets
        wanted = {*((head, "+") for head in sets.positive or ()), *((head, "−") for head in sets.negative or ())}
        agreement = overlap(wanted, measured, max(2 * len(found.z), len(wanted | measured)))
        detail = {
            "p": agreement.p, "chance": agreement.chance, "common": agreement.common,
            "positive": list(found.positive), "negative": list(found.negative),
        }  # fmt: skip
        heads = f"+ {listed(found.positive)}; − {listed(found.negative)}"
        return Measured(agreement.jaccard, f"{shown(agreement.jaccard)} (p = {agreement.p:.2g}): {heads}", detail)

    def judge(self, measured: Measured) -> Verdict:
        """More in common than two random sets would have."""
        return _verdict.beyond_chance(float(measured.value), float(measured.detail["p"]), self.options.level)


COMPONENT = Jaccard

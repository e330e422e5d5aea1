"""The average indirect effect at one class of positions: at its peak over layers, or at one layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from engramscope.replications._effects import Estimate, NotMeasuredError
from engramscope.replications._measures._base import MeasureOptions, NumberMeasure, NumberOptions, Read
from engramscope.replications._results import Results
from engramscope.results.classes import class_effects
from engramscope.results.schema import Frame


class AieOptions(NumberOptions):
    """Options of `aie`.

    Attributes:
        arm: the study.
        sweep: its sweep.
        metric: name of the metric.
        role: the class of positions.
        layer: the layer; None for the one with the highest value.
    """

    arm: str
    sweep: str
    metric: str = "prob"
    role: str
    layer: int | None = Field(default=None, ge=0)


class Aie(NumberMeasure[AieOptions]):
    """`AIE = mean over prompts of (metric(restored) - metric(corrupted))`, tokens of a class averaged within a prompt.

    The average as published, in which every token counts as a sample, stands beside it (`class_effects`).
    """

    Options: ClassVar[type[MeasureOptions]] = AieOptions

    def reads(self) -> Sequence[Read]:
        """The sweep."""
        return ((self.options.arm, self.options.sweep, self.options.metric),)

    def number(self, results: Results) -> tuple[Estimate, Mapping[str, Any]]:
        """The average with its interval (which takes the layer as given); the layer beside it."""
        effects: Frame = results.arm(self.options.arm).effects
        rows: Frame = effects[(effects["sweep"] == self.options.sweep) & (effects["metric"] == self.options.metric)]
        group = dict(zip(rows["pair"], rows["group"].fillna(""), strict=True))
        clusters = {pair: str(name) or str(pair) for pair, name in group.items()}
        classes: Frame = class_effects(rows, clusters=clusters)
        table: Frame = classes[(classes["role"] == self.options.role) & classes["mean"].notna()]
        if self.options.layer is not None:
            table = table[table["layer"] == self.options.layer]
        if not len(table):
            raise NotMeasuredError(f"no prompt has a position {self.options.role!r} in such a layer")
        best = table.loc[table["mean"].astype(float).idxmax()]
        detail: dict[str, Any] = {"layer": int(best["layer"])}
        if best["mean_as_published"] == best["mean_as_published"]:
            detail["mean_as_published"] = float(best["mean_as_published"])
        return Estimate(float(best["mean"]), float(best["low"]), float(best["high"]), int(best["n"])), detail


COMPONENT = Aie

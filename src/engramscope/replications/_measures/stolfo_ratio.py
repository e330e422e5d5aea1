"""The ratio of Stolfo et al.: how far a patch raises the right result's probability and lowers the wrong one's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from engramscope.replications._effects import Estimate, NotMeasuredError, scaled
from engramscope.replications._measures._base import MeasureOptions, NumberMeasure, NumberOptions, Read
from engramscope.replications._results import Results
from engramscope.results.schema import Frame

_KEY = ["pair", "seed", "layer", "position_role", "position"]


class StolfoRatioOptions(NumberOptions):
    """Options of `stolfo_ratio`.

    Attributes:
        arm: the study; it measures `prob` and `prob_incorrect`.
        sweep: its sweep; None where it has one only.
        layer: the layer; None for the highest value over layers.
    """

    arm: str
    sweep: str | None = None
    layer: int | None = None


class StolfoRatio(NumberMeasure[StolfoRatioOptions]):
    """`1/2 [ (P(r) - P*(r)) / P*(r) + (P*(r') - P(r')) / P(r') ]`, patched against corrupted (*), mean over pairs.

    r is the right result of the clean question, r' that of the corrupted one. Draws are averaged within a pair. It
    explodes where `P*(r)` is tiny, so its mean hangs on a few pairs; the median stands beside it.

    Source: Stolfo et al., arXiv 2305.15054; Zhang & Nanda, arXiv 2309.16042, Figures 6 to 8.
    """

    Options: ClassVar[type[MeasureOptions]] = StolfoRatioOptions

    def reads(self) -> Sequence[Read]:
        """Both probabilities."""
        return tuple((self.options.arm, self.options.sweep, metric) for metric in ("prob", "prob_incorrect"))

    def number(self, results: Results) -> tuple[Estimate, Mapping[str, Any]]:
        """The ratio; the layer and the median over pairs beside it."""
        ratios = stolfo_ratios(results.arm(self.options.arm).effects, self.options.sweep)
        if self.options.layer is not None:
            wanted = scaled((self.options.layer, self.options.layer), results.published_layers, results.layers)
            ratios = ratios[ratios["layer"] == (wanted or (0, 0))[0]]
        by_layer: Frame = ratios.groupby("layer")["ratio"].agg(["mean", "median", "size"]).dropna()
        if not len(by_layer):
            raise NotMeasuredError("both probabilities are known in no pair")
        layer = int(by_layer["mean"].idxmax())
        best = by_layer.loc[layer]
        return Estimate(float(best["mean"]), n=int(best["size"])), {"layer": layer, "median": float(best["median"])}


def stolfo_ratios(effects: Frame, sweep: str | None) -> Frame:
    """Pair, layer and ratio: one row each, draws averaged."""
    rows: Frame = effects[(effects["status"] == "ok") & (effects["direction"] == "denoise")]
    rows = rows if sweep is None else rows[rows["sweep"] == sweep]
    columns = [*_KEY, "corrupted", "patched"]
    right: Frame = rows.loc[rows["metric"] == "prob", columns]
    wrong: Frame = rows.loc[rows["metric"] == "prob_incorrect", columns]
    both: Frame = right.merge(wrong, on=_KEY, suffixes=("_right", "_wrong"))
    with np.errstate(divide="ignore", invalid="ignore"):
        up = both["patched_right"] / both["corrupted_right"] - 1.0
        down = both["corrupted_wrong"] / both["patched_wrong"] - 1.0
    both = both.assign(ratio=0.5 * (up + down).replace([np.inf, -np.inf], np.nan))
    grouped: Frame = both.dropna(subset=["ratio"]).groupby(["pair", "layer"], as_index=False)["ratio"].mean()
    return grouped


COMPONENT = StolfoRatio

"""From effects by layer to a recommendation: which layers, how stable, and whether two corruptions agree."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from engramscope.results.schema import Frame
from engramscope.results.summary import Family, families, family_rng
from engramscope.stats.peak_stability import PeakStability, peak_stability

#: share of the resamples that the recommended layers must hold
LEVEL = 0.9


@dataclass(frozen=True)
class Profile:
    """One corruption, metric and sweep by layer.

    Attributes:
        corruption, metric, sweep, window: which.
        layers: layer numbers.
        effect, low, high: mean effect and its interval, in units of the metric.
        recovery: share of the clean–corrupted gap.
        detected: after correction.
        cut: not to be chosen.
        peak: the layer with the largest mean effect; -1 for none.
        recommended: fewest layers that hold the peak in 90 % of the resamples.
        shares: share of the resamples in which each layer is the peak.
        near: share of them in which the peak is this layer or a neighbour.
        centre, centre_low, centre_high: centre of mass of the positive effects, in layers.
    """

    corruption: str
    metric: str
    sweep: str
    window: int
    layers: tuple[int, ...]
    effect: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    recovery: tuple[float, ...]
    detected: tuple[bool, ...]
    cut: tuple[bool, ...]
    peak: int
    recommended: tuple[int, ...]
    shares: tuple[float, ...]
    near: float
    centre: float
    centre_low: float
    centre_high: float

    @property
    def supported(self) -> bool:
        """Whether the peak is a detected layer that helps the answer."""
        at = self.layers.index(self.peak) if self.peak in self.layers else -1
        return at >= 0 and self.detected[at] and self.effect[at] > 0

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "supported": self.supported}


def profiles(
    effects: pd.DataFrame, summary: pd.DataFrame, clusters: Mapping[str, str], *, resamples: int, seed: int
) -> list[Profile]:
    """The profile of every sweep over layers, one per corruption and metric, in the order of the table.

    Args:
        effects, summary: of one study whose sweeps patch one place in every layer.
        clusters: pair id -> cluster.
        resamples: of the bootstrap.
        seed: of the resampling.
    """
    found = []
    for family in families(effects):
        if bool(family.cells["layer"].isna().to_numpy().any()) or family.key["direction"] != "denoise":
            continue
        names = np.array([clusters.get(pair, pair) for pair in family.pairs])
        order = np.argsort(family.cells["layer"].to_numpy(dtype=int))
        rng = family_rng(family, seed + 3)
        stability = peak_stability(family.effect[:, order], names, rng=rng, cut=family.cut[order], resamples=resamples)
        found.append(_profile(family, summary, stability))
    return found


def _profile(family: Family, summary: pd.DataFrame, stability: PeakStability) -> Profile:
    rows: Frame = summary
    for name, value in family.key.items():
        rows = rows[(rows[name] == value).to_numpy()]
    rows = rows.sort_values("layer")
    layers = tuple(int(layer) for layer in rows["layer"])

    def column(name: str) -> tuple[float, ...]:
        return tuple(float(value) for value in rows[name])

    return Profile(
        family.key["corruption"], family.key["metric"], family.key["sweep"], int(rows["window"].iloc[0]), layers,
        column("effect"), column("effect_low"), column("effect_high"), column("recovery"),
        tuple(bool(value) for value in rows["detected"]), tuple(bool(value) for value in rows["cut"]),
        layers[stability.peak] if stability.peak >= 0 else -1,
        tuple(layers[cell] for cell in stability.smallest_set(LEVEL)), tuple(map(float, stability.shares)),
        stability.near, *(layers[0] + value for value in (stability.centre, stability.low, stability.high)),
    )  # fmt: skip


def agreement(one: Profile, other: Profile) -> dict[str, Any]:
    """How far two profiles agree: rank correlation, distance of the peaks, layers that both recommend.

    The correlation is Spearman's over layers that are a cut in neither.
    """
    kept = [at for at in range(len(one.layers)) if not (one.cut[at] or other.cut[at])]
    both_ranked: Frame = pd.DataFrame({name: [profile.effect[at] for at in kept]
                                       for name, profile in (("one", one), ("other", other))}).rank()  # fmt: skip
    correlation = float(both_ranked.corr().iloc[0, 1]) if len(kept) > 2 else math.nan
    both = sorted(set(one.recommended) & set(other.recommended))
    return {"correlation": correlation, "distance": abs(one.peak - other.peak), "both": both}

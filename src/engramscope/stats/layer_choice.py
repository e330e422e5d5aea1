"""Four ways to choose the layer of an edit, and what each would have brought: paired over facts.

Source: the three controls after Hase et al. 2023 (arXiv 2301.04213): a random layer, the best fixed layer, and the
layer at which the fact's own tracing peaks. That locating helps needs the third to beat the second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from engramscope.stats.bootstrap import ratio_intervals, resample_clusters
from engramscope.stats.clusters import Floats
from engramscope.stats.layered import Estimate, as_tables
from engramscope.stats.permutation import sign_flip
from engramscope.stats.split import split_by_cluster

#: ways to choose a layer, in the order of the columns
WAYS = ("random", "fixed", "peak", "mean_peak")


@dataclass(frozen=True)
class Difference:
    """Success by one way minus success by another, mean over facts."""

    first: str
    second: str
    value: float
    low: float
    high: float
    p: float  # two-sided sign flip of whole clusters


@dataclass(frozen=True)
class LayerChoice:
    """What four ways to choose a layer bring.

    Attributes:
        n_facts: facts.
        success: way -> mean outcome with its interval. "random": mean over all layers, which is what a layer drawn at
            random brings on average. "fixed": the layer with the largest mean outcome. "peak": the layer at which the
            fact's own predictor is largest; layers that tie count alike. "mean_peak": the layer with the largest mean
            predictor. The two fixed layers are chosen on one half of the clusters and judged on the other, both ways.
        differences: peak - fixed first; then peak - random, fixed - random, mean_peak - fixed.
        fixed_layers: the layers chosen by the outcome, one for each half.
        mean_peak_layers: the layers chosen by the predictor.
        without_peak: facts whose predictor is the same at every layer, so that "peak" is a random layer for them.
        same_layer: facts whose one peak is the fixed layer that they are judged at: for them the two ways are one.
    """

    n_facts: int
    success: dict[str, Estimate]
    differences: tuple[Difference, ...]
    fixed_layers: tuple[int, ...]
    mean_peak_layers: tuple[int, ...]
    without_peak: int
    same_layer: int


def layer_choice(
    predictor: ArrayLike,
    outcome: ArrayLike,
    clusters: ArrayLike,
    *,
    rng: np.random.Generator,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> LayerChoice:
    """Success at a random layer, at the best fixed one, and at each fact's own peak.

    Args:
        predictor: `[n_facts, n_layers]`.
        outcome: `[n_facts, n_layers]`, larger is better.
        clusters: label of each fact `[n_facts]`; whole clusters are dealt to the halves, resampled and flipped.
        rng: source of randomness.
        confidence: of the intervals.
        resamples: of bootstrap and sign flips.

    Returns:
        Means over facts in units of the outcome. Layers are numbers of columns.

    Raises:
        ValueError: see `layered.as_tables`; or all facts are one cluster, which cannot be halved.
    """
    x, y = as_tables(predictor, outcome)
    labels = np.asarray(clusters)
    if len(np.unique(labels)) < 2:
        raise ValueError("a layer that is chosen on one half of the clusters needs at least two clusters")
    half = split_by_cluster(labels, rng).selection
    fixed, fixed_layers = _crossed(y, y, half)
    mean_peak, mean_peak_layers = _crossed(x, y, half)
    columns: dict[str, Floats] = dict(zip(WAYS, (y.mean(axis=1), fixed, at_peak(x, y), mean_peak), strict=True))
    resampling = resample_clusters(labels, resamples, rng)
    ones = np.ones(len(y))
    limits = ratio_intervals(np.stack(list(columns.values()), axis=1), ones, resampling, confidence=confidence)
    success = {
        name: Estimate(float(values.mean()), float(limits.low[at]), float(limits.high[at]))
        for at, (name, values) in enumerate(columns.items())
    }
    compared = (("peak", "fixed"), ("peak", "random"), ("fixed", "random"), ("mean_peak", "fixed"))
    gaps = np.stack([columns[first] - columns[second] for first, second in compared], axis=1)
    bounds = ratio_intervals(gaps, ones, resampling, confidence=confidence, expanded=True)
    flips = sign_flip(gaps, labels, rng=rng, resamples=resamples)
    differences = tuple(
        Difference(first, second, float(gaps[:, at].mean()), float(bounds.low[at]), float(bounds.high[at]),
                   float(flips.p[at]))
        for at, (first, second) in enumerate(compared)
    )  # fmt: skip
    without = int((x.max(axis=1) == x.min(axis=1)).sum())
    at = np.where(half, *fixed_layers)
    same = int(((x.argmax(axis=1) == at) & ((x == x.max(axis=1, keepdims=True)).sum(axis=1) == 1)).sum())
    return LayerChoice(len(y), success, differences, fixed_layers, mean_peak_layers, without, same)


def at_peak(predictor: Floats, outcome: Floats) -> Floats:
    """Each fact's outcome at the layer where its predictor is largest, `[n_facts]`; the mean over layers that tie."""
    tied = predictor == predictor.max(axis=1, keepdims=True)
    return (outcome * tied).sum(axis=1) / tied.sum(axis=1)


def _crossed(criterion: Floats, outcome: Floats, half: np.ndarray) -> tuple[Floats, tuple[int, ...]]:
    """Outcomes at the layer with the largest mean criterion in the *other* half, and both layers."""
    found = np.empty(len(outcome))
    layers = []
    for judged in (half, ~half):
        layer = int(criterion[~judged].mean(axis=0).argmax())
        found[judged] = outcome[judged, layer]
        layers.append(layer)
    return found, tuple(layers)

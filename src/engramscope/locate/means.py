"""Reference means for mean ablation: what a site holds on average over a set of clean runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from engramscope.corruptions._base import Mean
from engramscope.engine import reference
from engramscope.locate.cells import Cell
from engramscope.locate.prepare import Prepared, clean_run
from engramscope.locate.runs import Place, places_of
from engramscope.models.model import Model


def reference_means(
    model: Model, cells: Sequence[Cell], everyone: Sequence[Prepared]
) -> dict[tuple[Place, int], Tensor]:
    """Mean values over the reference set of every pair, at every place that the cells patch.

    Sums are kept in float64, the means in float32 or the model's own wider type. Nothing is computed where no pair asks
    for a mean ablation.

    Args:
        model: the model.
        cells: what will be patched.
        everyone: all prepared pairs; the members of the reference sets are indices into it.

    Returns:
        (place, pair index) -> [positions, width] where means are taken position by position, else [1, width]; for
        attention patterns only the former exists: [positions, n_heads, key].
    """
    places = tuple(dict.fromkeys(place for cell in cells for place in places_of(cell)))
    wanted: dict[Mean, list[int]] = defaultdict(list)
    for pair in everyone:
        for ablation in pair.ablations:
            if isinstance(ablation, Mean):
                wanted[ablation].append(pair.index)
    means: dict[tuple[Place, int], Tensor] = {}
    for mean, indices in wanted.items():
        of_set = _means_of(model, mean, places, everyone)
        means.update({(place, index): of_set[place] for place in places for index in indices if place in of_set})
    return means


def _means_of(model: Model, mean: Mean, places: Sequence[Place], everyone: Sequence[Prepared]) -> dict[Place, Tensor]:
    totals: dict[Place, Tensor] = {}
    counts: dict[Place, int] = defaultdict(int)
    wide = torch.promote_types(model.dtype, torch.float32)
    bases = {run.id: run for run in (clean_run(everyone[member]) for member in mean.members)}
    for _, place, value in reference.record(model, list(bases.values()), places):
        pattern = value.ndim == 3
        if pattern and not mean.per_position:
            continue
        rows = value.transpose(0, 1) if pattern else value
        part = rows.double() if mean.per_position else rows.double().sum(0, keepdim=True)
        totals[place] = totals[place] + part if place in totals else part
        counts[place] += 1 if mean.per_position else rows.shape[0]
    return {place: (total / counts[place]).to(wide) for place, total in totals.items()}

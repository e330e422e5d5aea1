"""Contributions of the parts of a model as a table, and their means over pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from engramscope.locate.questions import Question
from engramscope.stats.bootstrap import bootstrap_mean

#: what names a part, in the order of the columns
_KEYS = ("kind", "layer", "head", "source_role")


@dataclass(frozen=True)
class Attribution:
    """Contributions of the parts of a model to a logit difference.

    Attributes:
        table: one row per pair and part: `pair, cluster, kind, layer, head, contribution`, with `source_position,
            source_role` where heads are split by source. `kind` is `embed` (embedding and positions: what the first
            block is given), `head`, `attn_bias` (what attention writes whatever its heads say), `attn` (attention as a
            whole, where its heads cannot be told apart), `mlp` (its bias included), `norm_bias` (the bias of the
            final norm) or `unembed_bias` (the bias of the language-model head). Sources that a model does not have are
            left out. Unit: logits; positive = in favour of the correct answer.
        totals: one row per pair: `pair, cluster, <metric>` (the metric as it is defined, of the model's own logits),
            `before_cap` (the same before a soft cap; equal without one), `sum` (of the contributions) and `error`
            (sum - before_cap: rounding).
        notes: sentences that a reader of the table should know.
    """

    table: pd.DataFrame
    totals: pd.DataFrame
    notes: tuple[str, ...] = ()

    def means(self, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
        """Mean contribution of every part; see `mean_contributions`."""
        return mean_contributions(self.table, confidence=confidence, resamples=resamples, seed=seed)


class Contributions:
    """Contributions of the parts to equally long prompts, as they come: [pairs] each.

    Args:
        by_source: heads come split by source position.
    """

    def __init__(self, by_source: bool) -> None:
        self.by_source = by_source
        self.keys: list[tuple[str, int | None, int | None, int | None]] = []
        self.values: list[Tensor] = []

    def add(self, kind: str, layer: int | None, values: Tensor, needed: bool = True) -> None:
        """One part; left out where it is not needed, being zero in every model of this kind."""
        if needed:
            self.keys.append((kind, layer, None, None))
            self.values.append(values)

    def add_heads(self, layer: int, values: Tensor) -> None:
        """Heads [pairs, n_heads]."""
        for head in range(values.shape[1]):
            self.keys.append(("head", layer, head, None))
            self.values.append(values[:, head])

    def add_sources(self, layer: int, values: Tensor) -> None:
        """Heads by source [pairs, n_heads, seq]."""
        for head in range(values.shape[1]):
            for position in range(values.shape[2]):
                self.keys.append(("head", layer, head, position))
                self.values.append(values[:, head, position])

    def stacked(self) -> Tensor:
        """[pairs, parts]."""
        return torch.stack(self.values, dim=1)

    def frame(self, questions: Sequence[Question]) -> pd.DataFrame:
        """The rows of the table, pair by pair."""
        count, parts = len(questions), len(self.keys)
        kind, layer, head, position = zip(*self.keys, strict=True)
        columns: dict[str, object] = {
            "pair": np.repeat([question.id for question in questions], parts),
            "cluster": np.repeat([question.cluster for question in questions], parts),
            "kind": list(kind) * count,
            "layer": pd.array(list(layer) * count, dtype="Int64"),
            "head": pd.array(list(head) * count, dtype="Int64"),
        }
        if self.by_source:
            columns["source_position"] = pd.array(list(position) * count, dtype="Int64")
            roles = [None if at is None else question.prompt.roles[at] for question in questions for at in position]
            columns["source_role"] = pd.array(roles, dtype="string")
        return pd.DataFrame({**columns, "contribution": self.stacked().numpy().reshape(-1)})


def mean_contributions(
    table: pd.DataFrame, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> pd.DataFrame:
    """Mean contribution of every part over pairs, with BCa intervals of a bootstrap that resamples whole clusters.

    Heads that are split by source are averaged by the *role* of the source position; where several positions of a pair
    share a role, their contributions are added up. A pair without such a position does not count there.

    Args:
        table: `Attribution.table`.
        confidence: of the intervals.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        One row per part, in the order of the model: `kind, layer, head, (source_role,) mean, low, high, sd, n,
        n_clusters`. Unit: logits. The means of all parts add up to the mean logit difference. `low` and `high` are NaN
        with fewer than two clusters.
    """
    keys = [key for key in _KEYS if key in table.columns]
    parts = table.groupby(keys, dropna=False, sort=False).ngroup().to_numpy()
    pairs, first = np.unique(table["pair"].to_numpy(dtype=str), return_index=True)
    clusters = table["cluster"].to_numpy(dtype=str)[first]
    values = np.zeros((len(pairs), parts.max() + 1))
    present = np.zeros(values.shape, dtype=bool)
    place = (np.searchsorted(pairs, table["pair"].to_numpy(dtype=str)), parts)
    np.add.at(values, place, table["contribution"].to_numpy(dtype=float))
    present[place] = True
    values[~present] = np.nan
    rng = np.random.default_rng(seed)
    interval = bootstrap_mean(values, clusters, rng=rng, confidence=confidence, resamples=resamples)
    rows = table.drop_duplicates(keys)[keys].reset_index(drop=True)
    n = present.sum(axis=0)
    sd = [float(np.std(column[have], ddof=1)) if have.sum() > 1 else np.nan
          for column, have in zip(values.T, present.T, strict=True)]  # fmt: skip
    return rows.assign(
        mean=np.nansum(values, axis=0) / n, low=interval.bca_low, high=interval.bca_high, sd=sd, n=n,
        n_clusters=[len(set(clusters[have])) for have in present.T],
    )  # fmt: skip

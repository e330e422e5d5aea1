"""Average effects by layer and class of position: the curves and heat maps of causal tracing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from engramscope.results.schema import Frame
from engramscope.results.summary import families, family_rng
from engramscope.stats.bootstrap import bootstrap_mean

_KEY = ["sweep", "corruption", "direction", "metric", "site", "window", "layer", "role"]
#: half the width of a normal 95 % interval, in standard errors
_NORMAL = 1.96


def class_effects(
    effects: pd.DataFrame,
    *,
    clusters: Mapping[str, str] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Mean effect for every sweep, metric, layer and class of position, over prompts.

    `mean = 1/n Σ_prompts [ 1/k Σ_(positions of the class) mean over draws of (metric(patched) - metric(base)) ]`, for
    `prob` under noise the average indirect effect of Meng et al.: tokens of one prompt are not independent, so each
    prompt counts once. Prompts without the class are left out, and positions at which a cell was skipped or is a cut in
    this prompt; what is a cut in every prompt has no mean.

    Beside it the average as published: every *token* of the class is a sample, a subject of one token counts as its
    first and its last, and the interval is `±1.96 · std / √n` (n the number of tokens; the original notebook takes one
    number for all classes).

    Args:
        effects: the effects table; sweeps of single positions, or of positions by name.
        clusters: pair id -> cluster, resampled together; every pair by itself if None.
        confidence: of the cluster-bootstrap interval (percentile).
        resamples: number of resamples.
        seed: of the resampling.

    Returns:
        Columns sweep, corruption, direction, metric, site, window, layer, role, n (prompts), mean, low, high, and
        n_tokens, mean_as_published, half_as_published. Roles as in `engramscope.pairs.roles`. In units of the metric.

    Source: Meng et al. 2022 (arXiv 2202.05262), Figures 2, 3 and 7, and the released code.
    """
    by_role = effects.assign(position=pd.array([pd.NA] * len(effects), dtype="Int64"))
    parts = []
    for family in families(by_role):
        effect = np.where(family.cut, np.nan, family.effect)
        names = np.array([(clusters or {}).get(pair, pair) for pair in family.pairs])
        rng = family_rng(family, seed)
        interval = bootstrap_mean(effect, names, rng=rng, confidence=confidence, resamples=resamples)
        present = ~np.isnan(effect)
        count = present.sum(axis=0)
        mean = np.divide(np.where(present, effect, 0.0).sum(axis=0), count, where=count > 0,
                         out=np.full(len(count), np.nan))  # fmt: skip
        table = family.cells.assign(**family.key, n=count, mean=mean, low=interval.low, high=interval.high)
        parts.append(table.rename(columns={"position_role": "role"}))
    if not parts:
        return pd.DataFrame(columns=[*_KEY, "n", "mean", "low", "high"])
    found = pd.concat(parts, ignore_index=True)[[*_KEY, "n", "mean", "low", "high"]]
    return found.merge(_as_published(effects), on=_KEY, how="left")


def _as_published(effects: pd.DataFrame) -> Frame:
    """Every token a sample; see `class_effects`."""
    whole: Frame = effects[(effects["status"] == "ok") & ~effects["cut"].fillna(False).astype(bool)]
    rows = whole.rename(columns={"position_role": "role"})
    place = ["pair", "position"]
    tokens = rows.groupby([*_KEY, *place], dropna=False, sort=False)["effect"].mean().reset_index()
    single = tokens[tokens["role"] == "subject_last"]
    with_first = set(rows.loc[rows["role"] == "subject_first", "pair"])
    single = single[~single["pair"].isin(with_first)].assign(role="subject_first")
    tokens = pd.concat([tokens, single], ignore_index=True)
    grouped = tokens.groupby(_KEY, dropna=False, sort=False)["effect"]
    found: Frame = grouped.agg(
        n_tokens="size",
        mean_as_published="mean",
        half_as_published=lambda values: _NORMAL * float(np.std(values)) / np.sqrt(len(values)),
    )
    return found.reset_index()

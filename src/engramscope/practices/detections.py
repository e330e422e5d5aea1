"""What each corruption and metric detects, how far they agree, and where the probability is blind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from engramscope.metrics import get_metric
from engramscope.results.schema import Frame
from engramscope.stats.overlap import overlap

#: rules by which a head is detected: the published one, and the corrected ones
RULES = ("two_sd", "max_t", "bh")
#: of the lists that are corrected by Benjamini and Hochberg
FALSE_DISCOVERY = 0.05
#: a loss of probability below this share of the gap is seen by nobody, however sure its sign
VISIBLE = 0.01


@dataclass(frozen=True)
class Detected:
    """The heads that one rule detects under one corruption and metric.

    Attributes:
        variant, corruption, metric, rule: where and how.
        positive, negative: "layer.head", strongest first; positive ones help the answer.
        cells: number of heads looked at.
        tested: whether the rule applies: a distance (`kl`) has no test against 0.
    """

    variant: str
    corruption: str
    metric: str
    rule: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    cells: int
    tested: bool = True

    @property
    def signed(self) -> frozenset[str]:
        """The heads with their signs."""
        return frozenset((*(f"+{head}" for head in self.positive), *(f"-{head}" for head in self.negative)))


def detections(summary: pd.DataFrame, variant: str, corruption: str) -> list[Detected]:
    """By every rule, for every metric, from the summary of a sweep of heads.

    `two_sd`: farther than two standard deviations from the mean over all heads (Zhang & Nanda 2023). `max_t`: adjusted
    p at the study's level. `bh`: q at most 0.05. The sign is that of the effect, turned round for a metric
    of which less is better: a positive head helps the answer, also where no recovery is defined.
    """
    found = []
    for metric in dict.fromkeys(summary["metric"]):
        rows: Frame = summary[(summary["metric"] == metric) & ~summary["cut"].astype(bool)]
        tested = bool(rows["p_adjusted"].notna().any())
        sign = 1.0 if get_metric(str(metric)).higher_is_better else -1.0
        masks = {
            "two_sd": rows["two_sd"].astype(bool),
            "max_t": rows["detected"].astype(bool),
            "bh": (rows["q"] <= FALSE_DISCOVERY).fillna(False).astype(bool),
        }
        for rule in RULES:
            ordered: Frame = rows[masks[rule].to_numpy()]
            ordered = ordered.reindex(ordered["effect"].abs().sort_values(ascending=False).index)
            heads = [(f"{int(row.layer)}.{int(row.head)}", sign * float(row.effect)) for row in ordered.itertuples()]
            positive = tuple(name for name, value in heads if value > 0)
            negative = tuple(name for name, value in heads if value < 0)
            applies = tested or rule == "two_sd"
            found.append(Detected(variant, corruption, str(metric), rule, positive, negative, len(rows), applies))
    return found


def agreement(found: Sequence[Detected], rule: str) -> pd.DataFrame:
    """Jaccard index of every two lists of one rule, signs counted, beside what chance alone would give.

    Returns:
        Columns first, second ("variant corruption metric"), jaccard, chance, p, common. A head detected with different
        signs is no agreement; chance is that of two random sets of heads with equal sizes, signs left out.
    """
    mine = [one for one in found if one.rule == rule and one.tested]
    rows = []
    for one, other in combinations(mine, 2):
        both = overlap(one.signed, other.signed, 2 * max(one.cells, other.cells))
        plain = overlap({*one.positive, *one.negative}, {*other.positive, *other.negative}, one.cells)
        rows.append({
            "first": _name(one), "second": _name(other), "jaccard": both.jaccard, "chance": plain.chance, "p": plain.p,
            "common": both.common,
        })  # fmt: skip
    return pd.DataFrame(rows, columns=["first", "second", "jaccard", "chance", "p", "common"])


def blind_spots(summary: pd.DataFrame) -> list[dict[str, Any]]:
    """Heads that are negative by the logit difference and that the probability does not show as negative.

    An effect on the probability when denoising is at least `-P_corrupted(answer)`: where the corrupted run gives the
    answer no probability, nothing can lower it (Zhang & Nanda 2023, §4.2). A loss of less than 1 % of the gap counts as
    not shown.

    Returns:
        For each such head and rule ("two_sd", "max_t"): its effect in logit difference and in probability, means over
        pairs; a head that both rules find stands there once, with "two_sd".
    """
    by_metric: dict[str, Frame] = {str(metric): rows for metric, rows in summary.groupby("metric")}
    if not {"logit_diff", "prob"} <= set(by_metric):
        return []
    both: Frame = by_metric["logit_diff"].merge(by_metric["prob"], on=["layer", "head"], suffixes=("", "_prob"))
    found: dict[str, dict[str, Any]] = {}
    for rule, column in (("two_sd", "two_sd"), ("max_t", "detected")):
        negative = both[column].astype(bool) & (both["recovery"] < 0)
        shown = both[f"{column}_prob"].astype(bool) & (both["recovery_prob"] < -VISIBLE)
        blind: Frame = both[(negative & ~shown).to_numpy()].sort_values("recovery")
        for row in blind.itertuples():
            name = f"{int(row.layer)}.{int(row.head)}"
            effects = {"logit_diff": float(row.effect), "prob": float(row.effect_prob)}
            found.setdefault(name, {"head": name, "rule": rule, **effects})
    return list(found.values())


def concentration(summary: pd.DataFrame) -> dict[str, float]:
    """Participation ratio `(Σ e²)² / Σ e⁴` of the effects over heads, by metric: how many heads share the effect."""
    found = {}
    for metric, rows in summary.groupby("metric"):
        effects = rows["effect"].to_numpy(dtype=float)
        effects = effects[np.isfinite(effects)]
        fourth = float((effects**4).sum())
        found[str(metric)] = float((effects**2).sum()) ** 2 / fourth if fourth > 0 else float("nan")
    return found


def plain(found: Sequence[Detected]) -> list[Mapping[str, Any]]:
    """The lists as plain data."""
    return [{**one.__dict__, "positive": list(one.positive), "negative": list(one.negative)} for one in found]


def _name(one: Detected) -> str:
    return f"{one.variant} {one.corruption} {one.metric}"

"""What checks derive from a study: its corruption, its metrics, its clusters, its gaps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, cast

from engramscope.audit._base import AuditContext
from engramscope.corruptions._base import Corruption
from engramscope.metrics._base import Metric
from engramscope.pairs.pair import Pair
from engramscope.registry import Registry
from engramscope.study_file import StudyFile


def corruption_of(study: StudyFile) -> type[Corruption]:
    """The class of the study's corruption."""
    registry: Registry[Corruption] = Registry("engramscope.corruptions", Corruption, "corruption")
    return registry.get(study.corruption.method)


def corruption_options(study: StudyFile) -> dict[str, Any]:
    """The corruption's options, with its defaults filled in."""
    return corruption_of(study).Options.model_validate(study.corruption.options).model_dump()


def is_ablation(study: StudyFile) -> bool:
    """Whether there is no corrupted run at all."""
    return corruption_of(study).level == "activation"


def metrics_of(study: StudyFile) -> dict[str, type[Metric]]:
    """The classes of the study's metrics, by name, in its order."""
    registry: Registry[Metric] = Registry("engramscope.metrics", Metric, "metric")
    return {name: registry.get(name) for name in study.metrics.names}


def cluster_of(pair: Pair, by: str) -> str:
    """What a pair shares with the pairs that it depends on: its group, or the label `by`; else its own id."""
    name = pair.group if by == "group" else pair.labels.get(by, "")
    return name or pair.id


def clusters_of(context: AuditContext) -> list[str]:
    """The cluster of every pair, in their order."""
    return [cluster_of(pair, context.study.stats.cluster) for pair in context.pairs]


def holds_word(text: str, word: str) -> bool:
    """Whether `word` (white space at its ends aside) stands in `text` as a whole word, in this spelling."""
    bare = word.strip()
    return bool(bare) and re.search(rf"(?<!\w){re.escape(bare)}(?!\w)", text) is not None


def baseline_values(context: AuditContext, metric: str, run: Literal["clean", "corrupted"]) -> dict[str, float]:
    """A metric of the unpatched runs by pair, averaged over draws; pairs without such a run are left out."""
    baselines = cast(Any, context.baselines)
    rows = baselines[baselines["metric"] == metric]
    means = rows[run].astype(float).groupby(rows["pair"], sort=False).mean().dropna()
    return {str(pair): float(value) for pair, value in means.items()}


def gaps(context: AuditContext, metric: str) -> dict[str, float]:
    """How much better the clean run is than the corrupted one, by pair, averaged over draws.

    `gap = s (clean - corrupted)` with s = -1 for metrics where lower is better: positive = the corruption hurts. Units
    of the metric. Pairs without a corrupted run are left out.
    """
    sign = 1.0 if metrics_of(context.study)[metric].higher_is_better else -1.0
    clean, corrupted = (baseline_values(context, metric, run) for run in ("clean", "corrupted"))
    return {pair: sign * (clean[pair] - value) for pair, value in corrupted.items() if pair in clean}


def without_cuts(table: Any) -> Any:
    """The rows of an effects table or a summary that are no cuts."""
    return table[~table["cut"].eq(True).fillna(False).astype(bool)]


def token_texts(context: AuditContext, ids: Sequence[int]) -> tuple[str, ...]:
    """The text of each token, spaces written as spaces; the ids themselves where there is no tokenizer."""
    if context.tokenizer is None:
        return tuple(str(token) for token in ids)
    pieces = context.tokenizer.convert_ids_to_tokens(list(ids))
    return tuple(str(piece).replace("▁", " ").replace("Ġ", " ") for piece in pieces)


def bare_ids(context: AuditContext, text: str) -> tuple[int, ...]:
    """Token ids of a text without special tokens."""
    assert context.tokenizer is not None
    return tuple(context.tokenizer(text, add_special_tokens=False)["input_ids"])

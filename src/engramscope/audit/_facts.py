"""What checks derive from a study: its corruption, its metrics, its clusters, its gaps."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal, cast

from engramscope.audit._base import AuditContext
from engramscope.corruptions._base import Corruption
from engramscope.locate.cells import Cell
from engramscope.locate.cuts import CutFinder
from engramscope.metrics._base import Metric
from engramscope.models.site import is_weights
from engramscope.pairs import clusters
from engramscope.pairs.tokenized import TokenizedPair
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


def clusters_of(context: AuditContext) -> list[str]:
    """The cluster of every pair, in their order."""
    return clusters.clusters_of(list(context.pairs), context.study.stats.cluster)


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


def noised_spans(study: StudyFile) -> tuple[str, ...]:
    """Names of the spans that Gaussian noise is added to; none under another corruption."""
    if study.corruption.method != "gaussian":
        return ()
    span = corruption_options(study).get("span")
    return (span,) if isinstance(span, str) else tuple(map(str, span or ()))


def cut_shares(context: AuditContext) -> dict[Cell, float]:
    """Share of pairs (in [0, 1]) in which each cell is a cut: as given, or else from the graph of layers and positions.

    The latter takes the read-out to be the prompt's last position. Pairs that look alike to the graph, and the single
    heads of a layer, are asked once.
    """
    cells = context.cells or []
    if context.cut is not None:
        return {cell: context.cut.get(cell, 0.0) for cell in cells}
    if context.anatomy is None or not context.tokenized:
        return dict.fromkeys(cells, 0.0)
    named = noised_spans(context.study)
    alike: dict[object, list[TokenizedPair]] = defaultdict(list)
    for pair in context.tokenized:
        spans = tuple(sorted((name, tuple(places)) for name, places in pair.clean.spans.items()))
        noised = tuple(pair.corrupted.spans.get(span, ()) for span in named)
        alike[pair.alignment, pair.changed, pair.clean.roles, spans, noised].append(pair)
    differs = None if context.changed is None else context.changed.at
    finder = CutFinder(context.anatomy, corruption_of(context.study).level, differs)
    patches = [cell for cell in cells if not is_weights(cell.site)]
    return _lent(context, cells) | _shares(finder, patches, list(alike.values()), named)


def _lent(context: AuditContext, cells: Sequence[Cell]) -> dict[Cell, float]:
    """Transplants that replace everything that training changed restore everything."""
    changed, lent = context.changed, [cell for cell in cells if is_weights(cell.site)]
    return {cell: float(changed is not None and changed.lent(cell) == changed.tensors) for cell in lent}


def _shares(
    finder: CutFinder, cells: Sequence[Cell], alike: Sequence[Sequence[TokenizedPair]], spans: Sequence[str]
) -> dict[Cell, float]:
    def noised(pair: TokenizedPair) -> Sequence[int]:
        return sorted({at for span in spans for at in pair.corrupted.spans.get(span, ())})

    known: dict[object, float] = {}
    shares = {}
    for cell in cells:
        heads = None if cell.heads is None else len(cell.heads)
        way = (cell.severed, cell.paths is not None)
        key = (cell.site, cell.layers, heads, cell.position, cell.position_role, cell.direction, way)
        if key not in known:
            asked = [(len(pairs), finder.cut_in(cell, pairs[0], noised(pairs[0]))) for pairs in alike]
            answers = [(times, cut) for times, cut in asked if cut is not None]
            known[key] = sum(times for times, cut in answers if cut) / max(1, sum(times for times, _ in answers))
        shares[cell] = known[key]
    return shares


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

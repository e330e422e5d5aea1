"""From the two tables to what can be said: every predictor against every outcome of every editor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from engramscope.locate_edit.facts import Progress
from engramscope.locate_edit.settings import METRICS, OUTCOMES, TOKENS, Settings
from engramscope.locate_edit.tracing import draws_of, places_of, table_of
from engramscope.results.schema import Frame
from engramscope.stats.associations import Associations, within_layers
from engramscope.stats.bootstrap import bootstrap_mean
from engramscope.stats.correction import holm
from engramscope.stats.layer_choice import LayerChoice, layer_choice
from engramscope.stats.layered import Explained, explained, finite_rows, reliability

#: fewer facts than this are not analysed
LEAST_FACTS = 5
#: the permutations and the bootstrap are not needed where a draw's own gain is all that is asked
_ONE = 1
#: permutations for each analysis, at least: with fewer no p could be small after correction for all analyses
_PER_ANALYSIS = 40


@dataclass(frozen=True)
class Predictor:
    """One way to measure what tracing restores."""

    site: str
    window: int
    corruption: str
    metric: str
    tokens: str

    def of(self, tracing: pd.DataFrame, facts: Sequence[str], layers: Sequence[int], draw: int | None = None) -> Any:
        """Its effects `[n_facts, n_layers]`."""
        return table_of(tracing, facts, layers, draw, **asdict(self))


@dataclass(frozen=True)
class Tables:
    """What was measured.

    Attributes:
        tracing: of `tracing.restored`.
        edits: rows of `EDITS`.
        facts: ids of all facts, in order.
        relations: of the facts.
        layers: that were edited.
        n_layers: of the model.
    """

    tracing: pd.DataFrame
    edits: pd.DataFrame
    facts: tuple[str, ...]
    relations: tuple[str, ...]
    layers: tuple[int, ...]
    n_layers: int

    def outcome(self, editor: str, outcome: str) -> np.ndarray:
        """Mean over seeds `[n_facts, n_layers]`; NaN where an edit failed or the fact has no such prompt."""
        rows: Frame = self.edits[(self.edits["editor"] == editor) & (self.edits["outcome"] == outcome)]
        failed = rows.assign(value=rows["value"].where(rows["status"] == "ok").astype(float))
        seeds = failed.groupby(["fact", "layer"])["value"]
        mean = seeds.mean().where(seeds.count() == seeds.size()).unstack("layer")
        return mean.reindex(index=list(self.facts), columns=list(self.layers)).to_numpy(dtype=np.float64)

    def clusters(self, settings: Settings) -> np.ndarray:
        """What makes facts dependent."""
        return np.array(self.facts if settings.cluster == "fact" else self.relations)


def predictors(settings: Settings, n_layers: int) -> list[Predictor]:
    """Every way that the settings ask for; the first is the published one where it is among them."""
    return [
        Predictor(site, window, corruption, metric, tokens)
        for site, window in places_of(settings, n_layers)
        for corruption in settings.corruptions
        for metric in METRICS
        for tokens in TOKENS
    ]


def analyse(tables: Tables, settings: Settings, progress: Progress | None = None) -> dict[str, Any]:
    """All statistics, as plain data.

    Returns:
        `analyses`: a row for each predictor, editor and outcome; `curves`: means by layer with intervals;
        `reliability`: of each predictor that has several noise draws.
    """
    wanted = [
        (predictor, editor, outcome)
        for editor in settings.methods
        for outcome in OUTCOMES
        for predictor in predictors(settings, tables.n_layers)
    ]
    rows = []
    for done, (predictor, editor, outcome) in enumerate(wanted):
        if progress:
            progress("statistics", done, len(wanted))
        rows.append(_analysis(tables, settings, predictor, editor, outcome, len(wanted)))
    if progress:
        progress("statistics", len(wanted), len(wanted))
    _correct(rows)
    return {
        "analyses": rows,
        "curves": list(_curves(tables, settings)),
        "reliability": _reliabilities(tables, settings),
    }


def _rng(settings: Settings, *names: str) -> np.random.Generator:
    return np.random.default_rng([settings.seed, *"/".join(names).encode()])


def _analysis(
    tables: Tables, settings: Settings, predictor: Predictor, editor: str, outcome: str, count: int
) -> dict[str, Any]:
    """One of `count` analyses."""
    x, y = predictor.of(tables.tracing, tables.facts, tables.layers), tables.outcome(editor, outcome)
    kept = finite_rows(x, y)
    row: dict[str, Any] = {**asdict(predictor), "editor": editor, "outcome": outcome, "facts": int(kept.sum())}
    row["without_effect"], row["without_outcome"] = (int((~finite_rows(table)).sum()) for table in (x, y))
    clusters = tables.clusters(settings)[kept]
    if kept.sum() < LEAST_FACTS or len(np.unique(clusters)) < 2:
        return {**row, "status": f"not analysed: {int(kept.sum())} facts have a value at every layer"}
    how: dict[str, Any] = {
        "confidence": settings.confidence,
        "resamples": max(settings.resamples, _PER_ANALYSIS * count),
    }
    # the same draws for every analysis: differences between them are then not those of the resamples
    models = explained(x[kept], y[kept], clusters, rng=_rng(settings, "explained"), **how)
    choice = layer_choice(x[kept], y[kept], clusters, rng=_rng(settings, "choice"), **how)
    within = [
        within_layers(x[kept], y[kept], clusters, kind, rng=_rng(settings, kind), **how)
        for kind in ("pearson", "spearman")
    ]
    return {
        **row, "status": "ok", "models": _plain_models(models), "choice": _plain_choice(choice, tables.layers),
        "within": [_plain_within(one, tables.layers) for one in within],
        "draws": _by_draw(tables, settings, predictor, y, kept),
    }  # fmt: skip


def _by_draw(
    tables: Tables, settings: Settings, predictor: Predictor, outcome: np.ndarray, kept: np.ndarray
) -> list[dict[str, Any]]:
    """The gain of each noise draw on its own; facts that one draw leaves without a gap are left out of it."""
    found = []
    for draw in draws_of(tables.tracing, predictor.corruption):
        x = predictor.of(tables.tracing, tables.facts, tables.layers, draw)
        here = kept & finite_rows(x)
        if here.sum() >= LEAST_FACTS:
            clusters = tables.clusters(settings)[here]
            models = explained(x[here], outcome[here], clusters, rng=_rng(settings, "draw"), resamples=_ONE)
            found.append({"draw": draw, "facts": int(here.sum()), "gain": models.gain,
                          "gain_adjusted": models.gain_adjusted.value})  # fmt: skip
    return found


def _correct(rows: list[dict[str, Any]]) -> None:
    """Holm's correction over all analyses, for the gain and for the own peak against the best fixed layer."""
    done = [row for row in rows if row["status"] == "ok"]
    gains = holm(np.array([row["models"]["permutation_p"] for row in done], dtype=float))
    peaks = holm(np.array([row["choice"]["differences"][0]["p"] for row in done], dtype=float))
    for row, gain, peak in zip(done, gains, peaks, strict=True):
        row["models"]["permutation_p_holm"] = float(gain)
        row["choice"]["differences"][0]["p_holm"] = float(peak)


def _plain_models(found: Explained) -> dict[str, Any]:
    return asdict(found)


def _plain_choice(found: LayerChoice, layers: Sequence[int]) -> dict[str, Any]:
    plain = asdict(found)
    for name in ("fixed_layers", "mean_peak_layers"):
        plain[name] = [layers[column] for column in plain[name]]
    return plain


def _plain_within(found: Associations, layers: Sequence[int]) -> dict[str, Any]:
    columns = {name: getattr(found, name).tolist() for name in ("r", "low", "high", "p", "p_holm", "q")}
    return {"kind": found.kind, "n": found.n, "layers": list(layers), **columns}


def _curves(tables: Tables, settings: Settings) -> Iterator[dict[str, Any]]:
    """Mean by layer of every outcome and every predictor, with intervals, facts with a value at every layer."""
    for editor in settings.methods:
        for outcome in OUTCOMES:
            values = tables.outcome(editor, outcome)
            yield {"what": "outcome", "editor": editor, "outcome": outcome, **_curve(values, tables, settings)}
    for predictor in predictors(settings, tables.n_layers):
        values = predictor.of(tables.tracing, tables.facts, tables.layers)
        yield {"what": "tracing", **asdict(predictor), **_curve(values, tables, settings)}


def _curve(values: np.ndarray, tables: Tables, settings: Settings) -> dict[str, Any]:
    kept = finite_rows(values)
    here = {"layers": list(tables.layers), "facts": int(kept.sum())}
    if kept.sum() < 2:
        return {**here, "mean": [], "low": [], "high": []}
    limits = bootstrap_mean(
        values[kept], tables.clusters(settings)[kept], rng=_rng(settings, "curve"), confidence=settings.confidence,
        resamples=settings.resamples,
    )  # fmt: skip
    return {**here, "mean": values[kept].mean(axis=0).tolist(), "low": limits.low.tolist(),
            "high": limits.high.tolist()}  # fmt: skip


def _reliabilities(tables: Tables, settings: Settings) -> list[dict[str, Any]]:
    found = []
    for predictor in predictors(settings, tables.n_layers):
        draws = [predictor.of(tables.tracing, tables.facts, tables.layers, draw)
                 for draw in draws_of(tables.tracing, predictor.corruption)]  # fmt: skip
        if len(draws) > 1:
            kept = finite_rows(*draws)
            value = reliability(np.stack([one[kept] for one in draws]))
            found.append({**asdict(predictor), "draws": len(draws), "facts": int(kept.sum()), "reliability": value})
    return found

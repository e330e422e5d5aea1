"""From the effects table to the summary: one row per cell and metric, with intervals, tests and corrections."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from engramscope.results.effect_scale import UNSIGNED, is_signed, no_effect
from engramscope.results.schema import ROLE_MEAN, SINGLES, SUMMARY_COLUMNS, Frame
from engramscope.stats.correction import benjamini_hochberg
from engramscope.stats.permutation import sign_flip
from engramscope.stats.summary import CellSummary, summarise

#: one sweep under one direction and metric: its cells share an axis of a figure
FAMILY = ("sweep", "corruption", "direction", "metric")
#: states of a cell (`stats.summary.REASONS`) that say more than that its metric is not tested
_UNTESTED = frozenset({"empty", "cut"})
_PLACE = ("site", "layer", "head", "position", "position_role", "window")


@dataclass(frozen=True)
class Family:
    """The cells of one sweep under one direction and metric, as arrays over pairs.

    Attributes:
        key: sweep, corruption, direction and metric.
        cells: one row per cell: site, layer, head, position, position_role, window.
        pairs: pair ids [n].
        patched: [n, draws, cells]; NaN where the pair has no such cell, or where it is a cut in this pair only.
        clean: [n].
        corrupted: [n, draws]; None for ablations.
        cut: [cells]: a cut in every pair that has the cell.
        notes: [cells]: what was averaged or left out.
    """

    key: dict[str, str]
    cells: pd.DataFrame
    pairs: tuple[str, ...]
    patched: np.ndarray
    clean: np.ndarray
    corrupted: np.ndarray | None
    cut: np.ndarray
    notes: tuple[str, ...]

    @property
    def signed(self) -> bool:
        """Whether effects on the metric can be tested against 0 (`Metric.signed`)."""
        return is_signed(self.key["metric"])

    @property
    def effect(self) -> np.ndarray:
        """Change of the metric by the patch, averaged over draws: [n, cells]."""
        denoise = self.key["direction"] == "denoise" and self.corrupted is not None
        start = self.corrupted if denoise else self.clean[:, None]
        assert start is not None
        return _mean_over(self.patched - start[:, :, None])

    @property
    def gap(self) -> np.ndarray | None:
        """clean - corrupted, averaged over draws: [n]; None for ablations."""
        return None if self.corrupted is None else self.clean - self.corrupted.mean(axis=1)


def families(effects: pd.DataFrame) -> Iterator[Family]:
    """The effects table as matrices, one `Family` at a time, in the order of the table.

    Noise draws of a pair are averaged. Cells of single positions are compared by index only where all prompts have the
    same roles in the same places; otherwise by role, averaged over the positions of a role within a prompt.
    """
    grouped: Frame = effects.groupby(list(FAMILY), sort=False, dropna=False)
    for key, rows in grouped:
        named: dict[str, str] = dict(zip(FAMILY, (str(part) for part in key), strict=True))
        yield _family(named, _with_comparable_positions(rows))


def summarise_effects(
    effects: pd.DataFrame,
    clusters: Mapping[str, str],
    *,
    pooled: Collection[str] | None = None,
    floor: Mapping[str, float] | None = None,
    confidence: float = 0.95,
    family_error: float = 0.01,
    resamples: int = 10_000,
    interval: Literal["percentile", "bca"] = "bca",
    singles: Mapping[str, str] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Estimates, intervals and corrected tests for every cell and metric.

    Args:
        effects: the effects table (`results.schema.EFFECTS`).
        clusters: pair id -> what it shares with the pairs that it depends on.
        pooled: ids of the pairs that enter recovery; None for all. Pairs whose clean–corrupted gap is tiny or of the
            wrong sign are left out of recovery, but never of the tests: that would be a selection by the outcome.
        floor: metric -> noise floor; effects not above it are never detected.
        confidence: of the intervals.
        family_error: the chance allowed of any false detection in the whole table: cells of all sweeps, directions
            and metrics are corrected for one another.
        resamples: of bootstrap and permutation.
        singles: for each sweep of windows the sweep of its single layers; None to take one of the same site.
        interval: which bootstrap interval is shown as `low`, `high`.
        seed: of the resampling.

    Returns:
        A table with the columns `results.schema.SUMMARY_COLUMNS`.
    """
    study = str(effects["study"].iloc[0]) if len(effects) else ""
    settings = _Settings(clusters, pooled, dict(floor or {}), confidence, family_error, resamples, interval, seed)
    parts = list(families(effects))
    if not parts:
        return pd.DataFrame(columns=list(SUMMARY_COLUMNS))
    tables = [_table(family, study, settings) for family in parts]
    tables = [_with_singles(table, tables, singles) for table in tables]
    whole = pd.concat(tables, ignore_index=True)[list(SUMMARY_COLUMNS)]
    return _tested_together(whole, parts, settings)


def _tested_together(table: Frame, parts: Sequence[Family], settings: _Settings) -> Frame:
    """Replace the tests of each family by one test of everything: the same sign flips for all cells of the table.

    Whoever looks at several sweeps, directions and metrics looks at all their cells; correlated ones cost little. Cuts
    and the cells of metrics that are not signed have no p and take no part.
    """
    pairs = {pair: row for row, pair in enumerate(dict.fromkeys(pair for part in parts for pair in part.pairs))}
    effect = np.full((len(pairs), len(table)), np.nan)
    start = 0
    for part in parts:
        width = len(part.cells)
        effect[[pairs[pair] for pair in part.pairs], start : start + width] = part.effect
        start += width
    left_out = table["cut"].to_numpy(dtype=bool) | np.repeat(
        [not part.signed for part in parts], [len(part.cells) for part in parts]
    )
    clusters = np.array([settings.clusters.get(pair, pair) for pair in pairs])
    rng = np.random.default_rng([settings.seed, 4])
    test = sign_flip(effect, clusters, rng=rng, resamples=settings.resamples, family=~left_out)
    p = np.where(left_out, np.nan, test.p)
    above = table["effect"].abs().to_numpy() > table["noise_floor"].fillna(0.0).to_numpy()
    detected = (np.nan_to_num(test.p_max_t, nan=1.0) <= settings.family_error) & ~left_out & above
    return table.assign(p=p, p_adjusted=test.p_max_t, q=benjamini_hochberg(p), detected=detected)


def _with_comparable_positions(rows: Frame) -> Frame:
    if rows["position"].isna().all():
        return rows
    roles = rows.groupby("position")["position_role"].nunique(dropna=False)
    reach = rows.groupby("pair")["position"].max()
    if (roles == 1).all() and reach.nunique() == 1:
        return rows
    return rows.assign(position=pd.array([pd.NA] * len(rows), dtype="Int64"))


def _family(key: dict[str, str], rows: Frame) -> Family:
    place = list(_PLACE)
    cells = rows[place].drop_duplicates(ignore_index=True)
    cell = rows[place].merge(cells.assign(cell=np.arange(len(cells))), on=place, how="left")["cell"].to_numpy()
    pair, pair_ids = pd.factorize(rows["pair"])
    draw, draws = pd.factorize(rows["seed"])
    shape = (len(pair_ids), len(draws), len(cells))
    ok = (rows["status"] == "ok").to_numpy()
    cut = rows["cut"].fillna(False).to_numpy(dtype=bool)
    shares = _mean_over(_average(cut.astype(float), (pair, draw, cell), ok, shape))
    always = np.array([bool(len(part)) and bool((part == 1).all()) for part in _known(shares)])
    patched = _average(rows["patched"].to_numpy(dtype=float), (pair, draw, cell), ok & (~cut | always[cell]), shape)
    clean = _average(rows["clean"].to_numpy(dtype=float), (pair,), np.ones(len(rows), dtype=bool), shape[:1])
    before = rows["corrupted"].to_numpy(dtype=float)
    corrupted = None if np.isnan(before).all() else _average(before, (pair, draw), ~np.isnan(before), shape[:2])
    places = _counts((pair, draw, cell), ok, shape).max(axis=1)
    lost = _counts((pair, draw, cell), ok & cut & ~always[cell], shape).max(axis=1)
    notes = tuple(_note(*columns) for columns in zip(places.T, lost.T, strict=True))
    return Family(key, cells, tuple(map(str, pair_ids)), patched, clean, corrupted, always, notes)


def _counts(index: tuple[np.ndarray, ...], keep: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    counts = np.zeros(shape, dtype=np.int64)
    np.add.at(counts, tuple(part[keep] for part in index), 1)
    return counts


def _note(places: np.ndarray, lost: np.ndarray) -> str:
    """How a cell was averaged and what was left out, from the numbers of positions per pair: all, and cut ones."""
    most, pairs = int(places.max(initial=0)), int((lost > 0).sum())
    parts = [f"mean over up to {most} {ROLE_MEAN}"] if most > 1 else []
    if pairs and most > 1:
        parts.append(f"a cut at {int(lost.sum())} positions in {pairs} pairs, which are left out")
    elif pairs:
        parts.append(f"a cut in {pairs} pairs, which are left out")
    return "; ".join(parts)


def _known(matrix: np.ndarray) -> list[np.ndarray]:
    return [column[~np.isnan(column)] for column in matrix.T]


def _average(values: np.ndarray, index: tuple[np.ndarray, ...], keep: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Mean of the kept values that fall on each index (several positions of one role); NaN where there is none."""
    total, count = np.zeros(shape), np.zeros(shape)
    kept = tuple(part[keep] for part in index)
    np.add.at(total, kept, values[keep])
    np.add.at(count, kept, 1.0)
    return np.divide(total, count, out=np.full(shape, np.nan), where=count > 0)


def _mean_over(values: np.ndarray) -> np.ndarray:
    """Mean over draws (axis 1) of what is there: [n, draws, cells] -> [n, cells]."""
    known = ~np.isnan(values)
    count = known.sum(axis=1)
    total = np.where(known, values, 0.0).sum(axis=1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


@dataclass(frozen=True)
class _Settings:
    clusters: Mapping[str, str]
    pooled: Collection[str] | None
    floor: Mapping[str, float]
    confidence: float
    family_error: float
    resamples: int
    interval: str
    seed: int


def family_rng(family: Family, seed: int) -> np.random.Generator:
    """Randomness of one family, the same whatever other families there are."""
    return np.random.default_rng([seed, *"/".join(family.key.values()).encode()])


def _table(family: Family, study: str, settings: _Settings) -> Frame:
    noise = settings.floor.get(family.key["metric"], float("nan"))  # NaN: it was not measured
    one_draw = family.patched.shape[1] == 1
    pooled = None if settings.pooled is None else np.array([pair in settings.pooled for pair in family.pairs])
    result = summarise(
        family.patched[:, 0] if one_draw else family.patched,
        family.clean,
        family.corrupted[:, 0] if one_draw and family.corrupted is not None else family.corrupted,
        np.array([settings.clusters.get(pair, pair) for pair in family.pairs]),
        direction="denoise" if family.key["direction"] == "denoise" else "noise",
        rng=family_rng(family, settings.seed),
        cut=family.cut,
        floor=0.0 if np.isnan(noise) else noise,
        pooled=pooled,
        confidence=settings.confidence,
        level=settings.family_error,
        resamples=settings.resamples,
    )
    kind = "effect" if family.corrupted is None else "recovery"
    columns: dict[str, Any] = {**_estimates(result, settings.interval), "noise_floor": noise, "cut": family.cut}
    low, high = columns[f"{kind}_low"], columns[f"{kind}_high"]
    shown = {"estimate_kind": kind, "estimate": columns[kind], "low": low, "high": high}
    table = family.cells.assign(study=study, **family.key, **columns, **shown)
    unsigned = "" if family.signed else UNSIGNED
    whys = [why if state in _UNTESTED or not unsigned else unsigned
            for why, state in zip(map(str, result.reason), result.status, strict=True)]  # fmt: skip
    reasons = ["; ".join(filter(None, parts)) for parts in zip(family.notes, whys, strict=True)]
    return table.assign(note=reasons, singles_sum=np.nan)


def _estimates(result: CellSummary, interval: str) -> dict[str, Any]:
    bca = interval == "bca"
    return {
        "n": result.n,
        "n_clusters": result.n_clusters,
        "effect": result.mean_effect,
        "effect_low": result.mean_effect_bca_low if bca else result.mean_effect_low,
        "effect_high": result.mean_effect_bca_high if bca else result.mean_effect_high,
        "recovery": result.recovery,
        "recovery_low": result.recovery_bca_low if bca else result.recovery_low,
        "recovery_high": result.recovery_bca_high if bca else result.recovery_high,
        "p": result.p,
        "p_adjusted": result.p_max_t,
        "q": result.q_bh,
        "two_sd": result.two_sd,
        "detected": result.detected,
        "d_z": result.d_z,
        "same_sign_share": result.same_sign_share,
        "n_pooled": result.n_pooled,
    }


def _with_singles(table: Frame, tables: list[Frame], singles_of: Mapping[str, str] | None) -> Frame:
    """For windows: the sum of the single-layer estimates over the window, where a sweep has all of its layers.

    Of several sweeps of single layers the one that was added for this sweep is asked first.
    """
    width = int(table["window"].iloc[0])
    if width <= 1:
        return table
    first = table.iloc[0]
    same = ("site", "direction", "metric", "corruption")
    alike = [
        o for o in tables if int(o["window"].iloc[0]) == 1 and all(o[name].iloc[0] == first[name] for name in same)
    ]
    if singles_of is not None:
        # a sweep of the same site may be severed, or a path: no single layers of this one
        alike = [other for other in alike if other["sweep"].iloc[0] == singles_of.get(str(first["sweep"]))]
    alike.sort(key=lambda other: not other["sweep"].iloc[0].startswith(first["sweep"] + SINGLES))
    last = max(int(other["layer"].max()) for other in tables if other["layer"].notna().any())
    sums = np.full(len(table), np.nan)
    for other in alike:
        singles = other.set_index("layer")
        found = np.array([_window_sum(row, singles, width, last) for _, row in table.iterrows()])
        sums = np.where(np.isnan(sums), found, sums)
    return table.assign(singles_sum=sums)


def _window_sum(row: Frame, singles: Frame, width: int, last: int) -> float:
    """Sum over the layers of a window, of which there are fewer at the ends of the model; NaN unless all are there."""
    low, high = int(row["layer"]) - width // 2, int(row["layer"]) + (width + 1) // 2
    wanted = range(max(0, low), min(last + 1, high))
    inside = singles[singles.index.isin(wanted) & ~singles["cut"].to_numpy(dtype=bool)]
    for key in ("head", "position", "position_role"):
        inside = inside[inside[key].isna() if pd.isna(row[key]) else inside[key].eq(row[key]).fillna(False)]
    if sorted(inside.index) != list(wanted):
        return float("nan")
    # what adds up is the distance from no effect
    start = no_effect(row["estimate_kind"], row["direction"])
    return start + float((inside["estimate"] - start).sum(skipna=False))


def cell_label(row: Mapping[str, Any]) -> str:
    """A short name of a cell: "L3H5 z", "L2 mlp_out at subject_last", "transformer.h.0.mlp.c_fc"."""
    layer = "" if pd.isna(row["layer"]) else f"L{int(row['layer'])}"
    head = "" if pd.isna(row["head"]) else f"H{int(row['head'])}"
    where = ""
    if not pd.isna(row["position"]):
        where = f" at position {int(row['position'])}"
    elif row["position_role"] not in ("all", None) and not pd.isna(row["position_role"]):
        where = f" at {row['position_role']}"
    window = f" (window {int(row['window'])})" if int(row["window"]) > 1 else ""
    return f"{layer}{head} {row['site']}{where}{window}".strip()

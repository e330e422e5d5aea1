"""How much restoring each layer brings back: two corruptions and two metrics, from one sweep for each corruption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from engramscope.locate_edit.facts import Progress
from engramscope.locate_edit.settings import METRICS, Settings
from engramscope.models.model import Model
from engramscope.pairs import PairSet
from engramscope.results.schema import Frame
from engramscope.study import StudyResult, run_study
from engramscope.study_file import parse_study, study_toml
from engramscope.study_inputs import inputs_of

#: a smaller distance of clean and corrupted run leaves nothing to restore, in units of the metric
MIN_GAP = {"prob": 0.01, "logit_diff": 0.1}
#: of the studies' own statistics, which the analysis does not use
_RESAMPLES = 1000
_KEYS = ["fact", "site", "window", "corruption", "metric", "layer"]


def trace(
    model: Model, pairs: PairSet, settings: Settings, folder: Path, *, resume: bool, progress: Progress | None
) -> dict[str, StudyResult]:
    """A study for each corruption, in a results folder of its own; both metrics are read from the same runs.

    Args:
        model: the model, unedited.
        pairs: of `choose_facts`; they lie in `../pairs.jsonl` for who repeats a study by its file.
        settings: what is restored.
        folder: holds the results folders.
        resume: go on where an earlier run stopped.
        progress: called with (what, done, total).

    Raises:
        InputError: the model does not offer a site, or the folder belongs to another study.
        CheckError: recomputed cells differ.
    """
    found = {}
    for corruption in settings.corruptions:
        study = _study(model, corruption, settings)
        inputs = inputs_of(parse_study(study, corruption), study_toml(study), folder, pairs)
        there = resume and (folder / corruption / "manifest.json").exists()
        found[corruption] = run_study(inputs, folder / corruption, resume=there, model=model, progress=progress)
    return found


def _study(model: Model, corruption: str, settings: Settings) -> dict[str, Any]:
    noise = {"sigma": settings.sigma, "draws": settings.draws} if corruption == "gaussian" else {}
    return {
        "schema": 1,
        "name": f"tracing {corruption}",
        "seed": settings.seed,
        "model": {"name": model.name or "model", "dtype": str(model.dtype).removeprefix("torch.")},
        "pairs": {"file": "../pairs.jsonl"},
        "corruption": {"method": corruption, **noise},
        "sweep": [
            {"name": sweep_name(site, window), "site": site, "positions": "each", "window": window}
            for site, window in places_of(settings, model.anatomy.n_layers)
        ],
        "metrics": {"names": list(METRICS[::-1])},
        "stats": {"resamples": _RESAMPLES},
    }


def places_of(settings: Settings, n_layers: int) -> list[tuple[str, int]]:
    """(site, width of its windows), each once; at most all layers, and 1 for the residual stream, restored whole."""
    wanted = [
        (site, 1 if site == "resid_post" else min(window, n_layers))
        for site in settings.sites
        for window in settings.windows
    ]
    return list(dict.fromkeys(wanted))


def sweep_name(site: str, window: int) -> str:
    """The name of a sweep in the studies of the tracing."""
    return f"{site}, {window} layers" if window > 1 else site


def restored(effects: pd.DataFrame, places: Sequence[tuple[str, int]]) -> pd.DataFrame:
    """The fraction of the gap that restoring a layer brings back.

    `fraction = max(0, (restored - corrupted) / |clean - corrupted|)` of the metric at one token, means over noise draws
    taken before the ratio; of a layer the largest over tokens, and that of the last subject token. Cells that restore
    everything by construction are left out.

    Args:
        effects: `effects.parquet` of the tracing studies.
        places: (site, window) of the sweeps that are wanted.

    Returns:
        A row per fact, site, window, corruption, metric, layer, `tokens` ("any", "subject_last") and `draw` (missing:
        the mean over draws): `effect`, and `clean`, `corrupted`. `effect` is missing where the corruption does not
        lower the metric by `MIN_GAP`, or no token could be restored.

    Source: Hase et al. 2023, their analysis code.
    Deviation: facts whose gap is tiny or of the wrong sign have no effect there; they divide by its absolute value.
    """
    rows: Frame = effects[
        effects["sweep"].isin([sweep_name(*place) for place in places]) & ~effects["cut"].astype(bool)
    ]
    rows = rows[rows["status"] == "ok"].rename(columns={"pair": "fact", "seed": "draw"})
    cells = [*_KEYS, "position", "position_role"]
    mean = rows.groupby(cells, dropna=False)[["clean", "corrupted", "patched"]].mean().reset_index()
    parts = [_by_layer(mean.assign(draw=pd.NA))]
    several = rows.groupby("corruption")["draw"].transform("nunique") > 1
    if several.any():
        parts.append(_by_layer(rows[several]))
    table: Frame = pd.concat(parts, ignore_index=True)
    return table.astype({"draw": "Int64", "layer": "int64", "window": "int64"})


def _by_layer(cells: Frame) -> Frame:
    gap = cells["clean"] - cells["corrupted"]
    enough = gap >= cells["metric"].map(MIN_GAP)
    share = ((cells["patched"] - cells["corrupted"]) / gap.where(enough)).clip(lower=0.0)
    cells = cells.assign(effect=share.to_numpy(dtype=float))
    keys = [*_KEYS, "draw"]
    parts = []
    for tokens, part in (("any", cells), ("subject_last", cells[cells["position_role"] == "subject_last"])):
        grouped = part.groupby(keys, dropna=False, sort=True)
        largest = grouped.agg(effect=("effect", "max"), clean=("clean", "first"), corrupted=("corrupted", "first"))
        parts.append(largest.reset_index().assign(tokens=tokens))
    return pd.concat(parts, ignore_index=True)


def table_of(
    tracing: pd.DataFrame, facts: Sequence[str], layers: Sequence[int], draw: int | None = None, **which: Any
) -> np.ndarray:
    """Effects as an array `[n_facts, n_layers]`, NaN where there is none.

    Args:
        tracing: the table of `restored`.
        facts: ids, the rows.
        layers: the columns.
        draw: a noise draw; None for the mean over all.
        which: the values of other columns: `site`, `window`, `corruption`, `metric`, `tokens`.
    """
    rows: Frame = tracing[tracing["draw"].isna() if draw is None else tracing["draw"] == draw]
    for name, value in which.items():
        rows = rows[rows[name] == value]
    wide = rows.pivot(index="fact", columns="layer", values="effect")
    return wide.reindex(index=list(facts), columns=list(layers)).to_numpy(dtype=np.float64)


def draws_of(tracing: pd.DataFrame, corruption: str) -> list[int]:
    """The noise draws of a corruption that are told apart; none where there is one only."""
    rows: Frame = tracing[tracing["corruption"] == corruption]
    return sorted(int(draw) for draw in rows["draw"].dropna().unique())


def gaps(tracing: pd.DataFrame) -> list[Mapping[str, Any]]:
    """What the corruption did: mean metric of clean and corrupted runs, and facts without a gap, per metric."""
    rows: Frame = tracing[tracing["draw"].isna() & (tracing["tokens"] == "any")]
    found = []
    for (corruption, metric), part in rows.groupby(["corruption", "metric"], sort=True):
        single = part.drop_duplicates("fact")
        without = part.groupby("fact")["effect"].apply(lambda effect: bool(effect.isna().all()))
        found.append({
            "corruption": corruption, "metric": metric, "facts": len(single), "clean": float(single["clean"].mean()),
            "corrupted": float(single["corrupted"].mean()), "without_gap": int(without.sum()),
        })  # fmt: skip
    return found

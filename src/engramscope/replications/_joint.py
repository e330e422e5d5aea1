"""One patch of several heads in several layers: what no cell of a sweep can be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from engramscope.engine.plan import BaseRun, DerivedRun, FromRun, Patch, Plan, Readout
from engramscope.locate.attention_view import parse_head
from engramscope.locate.experiment import Experiment, Progress, set_up
from engramscope.locate.prepare import Prepared, clean_run, corrupted_run
from engramscope.locate.sweep import clean_logits
from engramscope.models import Model
from engramscope.models.anatomy import Anatomy
from engramscope.models.site import KV_SITES
from engramscope.study_inputs import Inputs

#: pairs whose runs are computed at a time
_PAIRS = 32


def restore_jointly(
    model: Model, inputs: Inputs, site: str, heads: Sequence[str], progress: Progress | None = None
) -> pd.DataFrame:
    """Denoise one site of several heads at all positions, all of them in one run.

    Args:
        model: the model.
        inputs: a study, of which the pairs, the corruption and the metrics are taken, not the sweeps.
        site: "q", "k", "v", "z" or "pattern".
        heads: "layer.head" each. With grouped queries `k` and `v` belong to a group, which is restored whole.
        progress: called with (what, done, total).

    Returns:
        One row per pair, draw and metric, in the columns of `effects.parquet` that `results.summary.families` needs.

    Raises:
        SiteError: a head that the model does not have, or a site that it does not offer.
        PairsError: pairs at fault.
    """
    by_layer = heads_by_layer(heads, model.anatomy, site)
    for layer in by_layer:
        model.site(site, layer)
    study = inputs.study
    experiment = set_up(
        model, inputs.pairs, inputs.corruption, study.corruption.method, study.metrics.names, seed=study.seed,
        known=study.pairs.at_least if study.pairs.known else None, memory_gb=study.run.memory_gb, progress=progress,
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    used = [experiment.prepared[index] for index in experiment.used]
    for first in range(0, len(used), _PAIRS):
        rows += _rows(experiment, used[first : first + _PAIRS], site, by_layer)
        if progress:
            progress("restoring", min(first + _PAIRS, len(used)), len(used))
    table = pd.DataFrame(rows)
    return table.astype({"layer": "Int64", "head": "Int64", "position": "Int64"})


def heads_by_layer(names: Iterable[str], anatomy: Anatomy, site: str) -> dict[int, tuple[int, ...]]:
    """Heads by layer; their key/value groups where the site has those.

    Raises:
        SiteError: a name that is no head of the model.
    """
    width = anatomy.n_heads // anatomy.n_kv_heads if site in KV_SITES else 1
    found = sorted({parse_head(name, anatomy) for name in names})
    layers = dict.fromkeys(layer for layer, _ in found)
    return {layer: tuple(sorted({head // width for at, head in found if at == layer})) for layer in layers}


def _rows(
    experiment: Experiment, pairs: Sequence[Prepared], site: str, heads: Mapping[int, tuple[int, ...]]
) -> list[dict[str, Any]]:
    bases: dict[str, BaseRun] = {}
    derived: list[DerivedRun] = []
    jobs: dict[str, tuple[Prepared, int]] = {}
    for pair in pairs:
        clean = clean_run(pair)
        partners = pair.partner(range(len(pair.tokens.clean)))
        source, into = FromRun(clean.id, tuple(p for p, _ in partners)), tuple(q for _, q in partners)
        patches = tuple(Patch(site, layer, into, source, group) for layer, group in heads.items())
        for draw in pair.draws:
            corrupted = corrupted_run(pair, draw)
            bases |= {clean.id: clean, corrupted.id: corrupted}
            run = DerivedRun(f"{corrupted.id}/restored", corrupted.id, patches)
            derived.append(run)
            jobs[run.id] = (pair, draw.seed)
    readouts = tuple(Readout(run, (len(pair.tokens.corrupted) - 1,)) for run, (pair, _) in jobs.items())
    plan = Plan(tuple(bases.values()), tuple(derived), readouts)
    return [row for run, scores in _scores(experiment, plan, jobs) for row in _lines(experiment, *jobs[run], scores)]


def _scores(
    experiment: Experiment, plan: Plan, jobs: Mapping[str, tuple[Prepared, int]]
) -> Iterable[tuple[str, Mapping[str, float]]]:
    """Run id and metrics of every patched run, in the order of the jobs."""
    scorer = experiment.scorer
    pairs = list({pair.index: pair for pair, _ in jobs.values()}.values())
    clean = clean_logits(experiment.executor, pairs) if scorer.needs_clean else {}
    columns = None if scorer.needs_vocabulary else {run: scorer.tokens_read(pair) for run, (pair, _) in jobs.items()}
    found: dict[str, Mapping[str, float]] = {}
    for answered in experiment.executor.execute(plan, columns):
        asked = [(jobs[run][0], ()) for run in answered.runs]
        scored = scorer.score(answered.logits, asked, clean, answered.columns)
        found |= {run: scorer.combined(scores) for run, scores in zip(answered.runs, scored, strict=True)}
    return [(run, found[run]) for run in jobs]


def _lines(experiment: Experiment, pair: Prepared, seed: int, scores: Mapping[str, float]) -> Iterable[dict[str, Any]]:
    base = experiment.base[pair.index]
    for metric, patched in scores.items():
        yield {
            "pair": pair.id, "group": pair.tokens.pair.group, "corruption": experiment.corruption_name, "seed": seed,
            "direction": "denoise", "site": "", "layer": None, "head": None, "position": None,
            "position_role": "all", "window": 1, "metric": metric, "clean": base.clean[metric],
            "corrupted": base.corrupted[seed][metric], "patched": patched,
            "effect": patched - base.corrupted[seed][metric], "status": "ok", "sweep": "restored", "cut": False,
        }  # fmt: skip

"""The smaller steps of running a study: refusals, lookups and tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from engramscope.audit._base import AuditContext, Finding
from engramscope.errors import InputError, ModelError, ResultsError
from engramscope.locate.cells import Cell
from engramscope.locate.cuts import CutFinder
from engramscope.locate.experiment import Experiment
from engramscope.locate.prepare import rewrite_pairs
from engramscope.models import Model, load_model
from engramscope.pairs import TokenizedPair, tokenize_pairs
from engramscope.results.store import ResultsFolder
from engramscope.study_inputs import Inputs, all_cells

ALL_PHASES = ("pairs", "tokens", "model", "results")


def load(inputs: Inputs) -> Model:
    """The model of a study."""
    section = inputs.study.model
    return load_model(
        section.name,
        dtype=section.dtype,
        device=section.device,
        revision=section.revision,
        trust_remote_code=section.trust_remote_code,
        allow_pickle=section.allow_pickle,
    )


def tokens_of(inputs: Inputs, tokenizer: Any) -> list[TokenizedPair]:
    """The pairs in tokens, as the corruption rewrites them."""
    if tokenizer is None:
        raise ModelError(
            f"Model {inputs.study.model.name!r} has no tokenizer, so prompts cannot be turned into tokens."
        )
    rewritten = rewrite_pairs(inputs.pairs, inputs.corruption)
    return tokenize_pairs(rewritten, tokenizer, inputs.corruption.alignment)


def refuse(findings: Sequence[Finding]) -> None:
    """Raise the audit's errors as faults of the input; warnings and notes pass."""
    faults = [
        f"{finding.check}: {finding.message}" + "".join(f"\n    {item}" for item in finding.items)
        for finding in findings
        if finding.severity == "error"
    ]
    if faults:
        raise InputError(faults)


def refuse_occupied(out: Path, resume: bool) -> None:
    """Say so before a model is loaded if the results folder cannot be used."""
    if out.exists() and not out.is_dir():
        raise ResultsError(f"{out} is a file; give the name of a folder for the results.")
    if resume:
        ResultsFolder.open(out)
        return
    if (out / "manifest.json").exists():
        status = json.loads((out / "manifest.json").read_text(encoding="utf-8")).get("status")
        hint = "use --resume to go on with it" if status != "complete" else "give another folder"
        raise ResultsError(f"{out} already holds a study ({status}); {hint}.")
    if out.is_dir() and any(out.iterdir()):
        raise ResultsError(f"{out} is not empty and is not a results folder of ours; give a new folder.")


def folder_for(inputs: Inputs, model: Model, out: Path, resume: bool) -> ResultsFolder:
    """Make the results folder, or take up that of an interrupted run of the same study."""
    digest = inputs.digest(model.weight_hash())
    if resume:
        return ResultsFolder.open(out).resume(digest, inputs.resolved)
    return ResultsFolder.create(out, inputs.text, digest, inputs.resolved)


def audit_context(
    inputs: Inputs, tokens: list[TokenizedPair] | None = None, tokenizer: Any = None, model: Model | None = None
) -> AuditContext:
    """What the checks may look at before anything is computed."""
    cells = None
    if model is not None and tokens is not None:
        cells = [cell for part in all_cells(inputs, model.anatomy, tokens).values() for cell in part]
    return AuditContext(
        study=inputs.study,
        pairs=inputs.pairs,
        tokenized=tokens,
        tokenizer=tokenizer,
        anatomy=None if model is None else model.anatomy,
        cells=cells,
    )


def lookup(effects: pd.DataFrame) -> Callable[[str, Cell, int, str], float | None]:
    """Find what the table says of (pair, cell, seed, metric); None where there is no such row."""
    keys = ["pair", "seed", "sweep", "direction", "site", "layer", "head", "metric"]
    # a role of a single position is what the prompt calls it; the cell itself knows an index
    table = effects[effects["status"] == "ok"]
    values: dict[tuple[Any, ...], float] = {}
    columns = [table[name].astype(object).where(table[name].notna(), None) for name in (*keys, "position")]
    roles = table["position_role"].astype(object).where(table["position"].isna(), None)
    for key, role, patched in zip(zip(*columns, strict=True), roles, table["patched"], strict=True):
        values[(*key, role)] = float(patched)

    def find(pair: str, cell: Cell, seed: int, metric: str) -> float | None:
        key = (pair, seed, cell.sweep, cell.direction, cell.site, cell.layer, cell.head, metric, cell.position)
        return values.get((*key, cell.position_role if cell.position is None else None))

    return find


def clusters_of(experiment: Experiment, by: str) -> dict[str, str]:
    """Pair id -> cluster: its group, itself, or the value of a label. An empty group is a cluster of its own."""
    found = {}
    for prepared in experiment.prepared:
        pair = prepared.tokens.pair
        value = {"group": pair.group, "pair": pair.id}.get(by, pair.labels.get(by, ""))
        found[pair.id] = value or pair.id
    return found


def labels_of(experiment: Experiment, label: str | None) -> dict[str, str]:
    """Pair id -> value of the label to compare by; only pairs that have it."""
    if label is None:
        return {}
    pairs = (prepared.tokens.pair for prepared in experiment.prepared)
    return {pair.id: pair.labels[label] for pair in pairs if label in pair.labels}


def pairs_table(experiment: Experiment) -> pd.DataFrame:
    """`pairs.parquet`: every pair with its tokens, its unpatched metrics, and whether it is used."""
    reasons = dict(experiment.excluded)
    rows = []
    for prepared in experiment.prepared:
        pair, tokens, base = prepared.tokens.pair, prepared.tokens, experiment.base[prepared.index]
        row: dict[str, Any] = {
            "pair": pair.id,
            "group": pair.group,
            "clean": pair.clean,
            "corrupted": pair.corrupted,
            "correct": list(pair.correct),
            "incorrect": list(pair.incorrect),
            "clean_tokens": list(tokens.clean.texts),
            "corrupted_tokens": list(tokens.corrupted.texts),
            "roles": list(tokens.clean.roles),
            "labels": json.dumps(dict(pair.labels), ensure_ascii=False),
            "status": "excluded" if pair.id in reasons else "used",
            "reason": reasons.get(pair.id, ""),
        }
        for metric in experiment.scorer.names:
            row[f"clean_{metric}"] = base.clean[metric]
            values = [line[metric] for line in base.corrupted.values()]
            row[f"corrupted_{metric}"] = sum(values) / len(values) if values else float("nan")
        rows.append(row)
    return pd.DataFrame(rows)


def with_results(
    context: AuditContext,
    experiment: Experiment,
    effects: pd.DataFrame,
    summary: pd.DataFrame,
    floor: dict[str, float],
) -> AuditContext:
    """The same context once the results are there."""
    from dataclasses import replace

    return replace(
        context,
        effects=effects,
        summary=summary,
        baselines=_baselines(experiment),
        excluded=list(experiment.excluded),
        noise_floor=floor,
        cut=_cut_shares(context, experiment),
    )


def counts_of(experiment: Experiment, effects: pd.DataFrame) -> dict[str, Any]:
    """How much there was of everything."""
    cells = ["sweep", "direction", "site", "layer", "head", "position", "position_role"]
    return {
        "pairs": len(experiment.prepared),
        "used": len(experiment.prepared) - len(experiment.excluded),
        "cells": int(effects[cells].drop_duplicates().shape[0]),
        "rows": len(effects),
        "by_status": {str(k): int(v) for k, v in effects["status"].value_counts().items()},
    }


def skipped_of(effects: pd.DataFrame, most: int = 200) -> list[dict[str, Any]]:
    """Which cells were skipped or failed in which pairs, counted."""
    bad = effects[effects["status"] != "ok"]
    groups = bad.groupby(["pair", "sweep", "status"], sort=False).size()
    return [
        {"pair": pair, "sweep": sweep, "reason": status, "cells": int(count)}
        for (pair, sweep, status), count in list(groups.items())[:most]
    ]


def corruption_options(inputs: Inputs) -> dict[str, Any]:
    """The corruption's options with their defaults filled in."""
    return inputs.corruption.options.model_dump(mode="json")


def finding_facts(finding: Finding) -> dict[str, Any]:
    """A finding of the audit as plain data."""
    return asdict(finding)


def _baselines(experiment: Experiment) -> pd.DataFrame:
    rows = []
    for prepared in experiment.prepared:
        base = experiment.base[prepared.index]
        for metric, clean in base.clean.items():
            draws = base.corrupted or {0: {metric: float("nan")}}
            rows += [
                {"pair": prepared.id, "seed": seed, "metric": metric, "clean": clean, "corrupted": line[metric]}
                for seed, line in draws.items()
            ]
    return pd.DataFrame(rows)


def _cut_shares(context: AuditContext, experiment: Experiment) -> dict[Cell, float]:
    if context.cells is None or context.anatomy is None:
        return {}
    finder = CutFinder(context.anatomy, experiment.corruption.level)
    noised = {pair.tokens.pair.id: pair.noised for pair in experiment.prepared}
    tokens = [pair.tokens for pair in experiment.prepared]
    return {cell: finder.cut_share(cell, tokens, lambda pair: noised[pair.pair.id]) for cell in context.cells}

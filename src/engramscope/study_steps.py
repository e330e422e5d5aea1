"""The smaller steps of running a study: refusals, lookups and tables."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from engramscope.audit import run_checks
from engramscope.audit._base import AuditContext, Finding
from engramscope.audit._facts import cut_shares
from engramscope.engine.executor import Kind
from engramscope.engine.machine import peak_memory
from engramscope.errors import CheckError, InputError, ModelError, ResultsError, shortened
from engramscope.locate.cells import Cell
from engramscope.locate.experiment import Experiment, Parity, check_parity
from engramscope.locate.prepare import rewrite_pairs
from engramscope.locate.trained import changed_between
from engramscope.models import Model, load_config, load_model, load_tokenizer, skeleton_sizes
from engramscope.pairs import TokenizedPair, clusters, tokenize_pairs
from engramscope.results.folders import is_scrap
from engramscope.results.read import read_manifest
from engramscope.results.store import ResultsFolder, differences
from engramscope.study_base import other_base
from engramscope.study_inputs import Inputs, all_cells, base_of, size_faults, token_faults

CELL_KEYS = ["direction", "site", "layer", "head", "position", "position_role"]
#: the largest difference allowed between a study's cells and the same cells recomputed, by dtype
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.5, torch.float16: 0.1}
ALL_PHASES = ("pairs", "tokens", "model", "results")


def load(inputs: Inputs) -> Model:
    """The model of a study."""
    section = inputs.study.model
    return load_model(
        inputs.model_name,
        dtype=section.dtype,
        device=section.device,
        revision=section.revision,
        trust_remote_code=section.trust_remote_code,
        allow_pickle=section.allow_pickle,
        resident_gb=section.resident_gb,
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


def refuse_early(inputs: Inputs, out: Path, resume: bool) -> None:
    """Every fault that can be told before weights are loaded, which may take minutes.

    Raises:
        InputError: all of them: of the pairs, the results folder, the tokenizer, tokens, layers and modules.
    """
    faults: list[str] = []
    _collect(faults, lambda: refuse(run_checks(audit_context(inputs), ("pairs",))))
    _collect(faults, lambda: refuse_occupied(out, resume))
    tokenizer = _collect(faults, lambda: tokenizer_of(inputs))
    if name := inputs.base_name:
        revision = base_of(inputs.corruption)[1]
        if not inputs.study.model.trust_remote_code:
            _collect(faults, lambda: load_config(name, revision=revision))
    if tokenizer is not None:  # else the model is not there, and asking the hub again only takes time
        faults += size_faults_early(inputs)
        tokens = _collect(faults, lambda: tokens_of(inputs, tokenizer))
        if tokens is not None:
            faults += token_faults(inputs, tokens, tokenizer)
    if faults:
        raise InputError(shortened(list(dict.fromkeys(faults))))


def tokenizer_of(inputs: Inputs) -> Any:
    """The tokenizer of a study's model; nothing else of it is loaded."""
    section = inputs.study.model
    return load_tokenizer(inputs.model_name, revision=section.revision, trust_remote_code=section.trust_remote_code)


def size_faults_early(inputs: Inputs) -> list[str]:
    """Layers, heads and modules that the model does not have, from its configuration; empty where that says nothing."""
    section = inputs.study.model
    if section.trust_remote_code:
        return []
    try:
        sizes = skeleton_sizes(load_config(inputs.model_name, revision=section.revision))
    except Exception:  # noqa: BLE001  (each architecture fails in its own way; loading will say what is wrong)
        return []
    return size_faults(inputs, sizes, sizes.modules)


def _collect(faults: list[str], make: Callable[[], Any]) -> Any:
    try:
        return make()
    except InputError as error:
        faults.extend(error.faults)
        return None


def refuse_occupied(out: Path, resume: bool) -> None:
    """Say so before a model is loaded if the results folder cannot be used.

    Raises:
        ResultsError: a file, another folder, a study that is there already, nothing to resume, or no permission.
    """
    if out.exists() and not out.is_dir():
        raise ResultsError(f"{out} is a file; give the name of a folder for the results.")
    if resume:
        if not (out / "manifest.json").exists():
            raise ResultsError(f"There is no study in {out} to go on with; leave out --resume to begin one.")
        ResultsFolder.open(out)
        return
    names = set() if not out.is_dir() else {item.name for item in out.iterdir() if not is_scrap(item.name)}
    if "manifest.json" in names:
        status = read_manifest(out).get("status")
        # killed before anything was computed: there is nothing to lose
        if not (names <= {"manifest.json", "study.toml"} and status == "running"):
            state = "a finished" if status == "complete" else "an interrupted"
            hint = "" if status == "complete" else "go on with it by --resume, or "
            raise ResultsError(f"{out} already holds {state} study; {hint}give another folder.")
    elif names:
        raise ResultsError(f"{out} is not empty and is not a results folder of ours; give a new folder.")
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise ResultsError(f"{out} cannot be made: {there} may not be written to; give another folder.")


def folder_for(inputs: Inputs, prints: Mapping[str, Any], out: Path, resume: bool) -> ResultsFolder:
    """Make the results folder, or take up that of an interrupted run of the same study.

    Raises:
        ResultsError: the folder cannot be used; where it is another study's, what differs.
    """
    digest = inputs.digest(prints)
    if not resume:
        return ResultsFolder.create(out, inputs.text, digest, inputs.resolved)
    folder = ResultsFolder.open(out)
    if folder.study_hash != digest:
        raise ResultsError(_what_changed(out, inputs.fingerprints(prints)))
    return folder.resume(digest, inputs.resolved)


def _what_changed(out: Path, now: dict[str, Any]) -> list[str]:
    before = read_manifest(out)
    found: list[str] = []
    if isinstance(before.get("study"), dict):
        known = {key: value for key, value in before["study"].items() if key != "run"}
        found += [f"Changed: {item}." for item in differences(known, now["study"])[:20]]
    prints = before.get("fingerprints") or {}
    if (old := prints.get("pairs")) is not None and old != now["pairs"]:
        other = [pair for pair in {**old, **now["pairs"]} if old.get(pair) != now["pairs"].get(pair)]
        shown = ", ".join(other[:5]) + (f" and {len(other) - 5} more" if len(other) > 5 else "")
        found.append(f"Changed: the pairs ({shown})." if other else "Changed: the order of the pairs.")
    elif old is not None and list(old) != list(now["pairs"]):
        found.append("Changed: the order of the pairs.")
    if prints.get("base_weights") != now.get("base_weights"):
        found.append("Changed: the weights of the model before training.")
    if prints.get("weights") not in (None, now["weights"]):
        found.append(f"Changed: the model's weights ({prints['weights'][:12]}… -> {now['weights'][:12]}…).")
    if isinstance(old := prints.get("configuration"), dict):
        changed = differences(old, now["configuration"])
        found += [f"Changed: the model's configuration: {item}." for item in changed[:20]]
    if prints.get("tokenizer") not in (None, now["tokenizer"]):
        found.append("Changed: the tokenizer (its vocabulary, its rules or its special tokens).")
    if prints.get("engramscope") not in (None, now["engramscope"]):
        found.append(f"Changed: the version of Engramscope ({prints['engramscope']} -> {now['engramscope']}).")
    return [f"{out} belongs to another study, so it cannot be resumed with this one; choose another folder.", *found]


def refuse_other_baselines(folder: Path, experiment: Experiment, tolerance: float) -> None:
    """Compare the unpatched values that are stored with those of now, where a study goes on.

    Raises:
        ResultsError: they differ by more than `tolerance`: the rows to come would belong to other runs.
    """
    worst = 0.0
    for file in (folder / "effects.parquet", *sorted((folder / ".parts").glob("*.parquet"))):
        if not file.is_file():
            continue
        columns = ["pair", "seed", "metric", "clean", "corrupted"]
        for pair, seed, metric, *stored in pd.read_parquet(file, columns=columns).drop_duplicates().itertuples(False):
            for run, value in zip(("clean", "corrupted"), stored, strict=True):
                now = experiment.base_value(str(pair), int(seed), str(metric), run)
                if now is not None and not pd.isna(value):
                    worst = max(worst, abs(now - float(value)))
    if worst > tolerance:
        raise ResultsError(
            f"The unpatched runs give other values than those stored in {folder}, by up to {worst:.3g} (at most "
            f"{tolerance:g} is allowed), though the study is the same; the libraries or the machine are other ones. "
            "Choose another folder."
        )


def audit_context(
    inputs: Inputs,
    tokens: list[TokenizedPair] | None = None,
    tokenizer: Any = None,
    model: Model | None = None,
    base: Model | None = None,
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
        sweeps=inputs.sweeps,
        changed=None if model is None or base is None else changed_between(model, base),
        other_base="" if model is None or base is None else other_base(model, base),
    )


def tolerance_of(model: Model) -> float:
    """The largest difference allowed between a study's cells and the same cells recomputed by whole forwards."""
    return TOLERANCE[model.dtype]


def recomputed(experiment: Experiment, cells: Sequence[Cell], count: int, effects: pd.DataFrame) -> Parity:
    """Some cells, drawn at random, by whole forwards, each in one pair, against the table of effects."""
    return check_parity(experiment, cells, count, lookup(effects), tolerance_of(experiment.model))


def ensure_parity(parity: Parity, effects: pd.DataFrame) -> None:
    """Refuse results that whole forwards do not confirm.

    Raises:
        CheckError: nothing could be compared though something was computed, or the difference is too large.
    """
    if not parity.checked:
        if "ok" not in set(effects["status"]):
            return  # nothing was computed, so there is nothing to be wrong
        raise CheckError(
            "None of the study's cells could be found again to be recomputed. The results cannot be trusted: "
            "please report this with the study file."
        )
    if not parity.passed:
        raise CheckError(
            f"{parity.checked} cells were recomputed by whole forwards, one at a time, and differ from the study's by "
            f"up to {parity.max_abs_diff:.3g}; at most {parity.tolerance:g} is allowed. The results cannot be trusted: "
            "please report this with the model's name. `--executor reference` computes everything by whole forwards."
        )


def lookup(effects: pd.DataFrame) -> Callable[[str, Cell, int, str], float | None]:
    """Find what the table says of (pair, cell, seed, metric); None where there is no such row."""
    keys = ["pair", "seed", "sweep", "direction", "site", "layer", "head", "metric"]
    # a role of a single position is what the prompt calls it; the cell itself knows an index
    table = effects.loc[effects["status"] == "ok"]
    values: dict[tuple[Any, ...], float] = {}
    columns = [_with_none(table[name]) for name in (*keys, "position")]
    roles = pd.Series(table["position_role"]).astype(object).where(pd.Series(table["position"]).isna(), None)
    for key, role, patched in zip(zip(*columns, strict=True), roles, table["patched"], strict=True):
        values[(*key, role)] = float(patched)

    def find(pair: str, cell: Cell, seed: int, metric: str) -> float | None:
        key = (pair, seed, cell.sweep, cell.direction, cell.site, cell.layer, cell.head, metric, cell.position)
        return values.get((*key, cell.position_role if cell.position is None else None))

    return find


def _with_none(column: Any) -> pd.Series:
    values = pd.Series(column)
    return values.astype(object).where(values.notna(), None)


def clusters_of(experiment: Experiment, by: str) -> dict[str, str]:
    """Pair id -> cluster: its group, itself, or the value of a label. An empty group is a cluster of its own."""
    pairs = [prepared.tokens.pair for prepared in experiment.prepared]
    return dict(zip((pair.id for pair in pairs), clusters.clusters_of(pairs, by), strict=True))


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
    unknown = {experiment.prepared[index].id for index in experiment.unknown or ()}
    return replace(
        context,
        effects=effects,
        summary=summary,
        baselines=_baselines(experiment),
        excluded=[item for item in experiment.excluded if item[0] not in unknown],
        unknown=[item for item in experiment.excluded if item[0] in unknown],
        noise_floor=floor,
        cut=cut_shares(context),
    )


def counts_of(experiment: Experiment, effects: pd.DataFrame) -> dict[str, Any]:
    """How much there was of everything."""
    cells = ["sweep", *CELL_KEYS]
    return {
        "pairs": len(experiment.prepared),
        "used": len(experiment.prepared) - len(experiment.excluded),
        "cells": int(effects[cells].drop_duplicates().shape[0]),
        "rows": len(effects),
        "by_status": {str(k): int(v) for k, v in effects["status"].value_counts().items()},
    }


def skipped_of(effects: pd.DataFrame) -> list[dict[str, Any]]:
    """Which cells were skipped or failed, and why: one entry per sweep and reason, in the order of the table.

    Returns:
        {"sweep", "reason", "pairs", "cells", "pair"}: in how many pairs, how many (cell, pair) in all, and one of the
        pairs. Metrics and draws of a cell in a pair count once.
    """
    bad = effects.loc[effects["status"] != "ok", ["sweep", "status", "pair", *CELL_KEYS]].drop_duplicates()
    return [
        {
            "sweep": str(sweep),
            "reason": str(status),
            "pairs": int(part["pair"].nunique()),
            "cells": len(part),
            "pair": str(part["pair"].iloc[0]),
        }
        for (sweep, status), part in bad.groupby(["sweep", "status"], sort=False)  # type: ignore[misc]
    ]


def with_executor(inputs: Inputs, executor: Kind) -> Inputs:
    """The same study, done by another executor."""
    run = inputs.study.run.model_copy(update={"executor": executor})
    return replace(inputs, study=inputs.study.model_copy(update={"run": run}))


def executor_facts(requested: str, experiment: Experiment | None) -> dict[str, Any]:
    """How the runs are executed: what was asked for, how it is done on this model, and why not more quickly."""
    if experiment is None:
        return {"requested": requested}
    executor = experiment.executor
    used = "reference" if executor.way == "reference" else "traversal"
    note = "; ".join(part for part in (executor.note, *sorted(executor.fallbacks)) if part)
    return {"requested": requested, "used": used, "way": executor.way, "note": note}


def executor_note(executor: Mapping[str, Any]) -> str:
    """A sentence where the runs could not be executed in the quickest way, else ""; from `executor_facts`."""
    if executor.get("requested") == "reference" or not executor.get("note"):
        return ""
    ways = {
        "rows": "Runs went through the model as rows of padded batches, not side by side",
        "reference": "Every run was given a whole forward of its own",
    }
    how = ways.get(str(executor.get("way")), "Some runs were given a whole forward of their own")
    return f"{how}: {executor['note']}. The numbers are the same; it takes longer."


def memory_facts(experiment: Experiment, at_start: float) -> dict[str, Any]:
    """What the study was allowed to add to the model, and the most that it did, in GiB."""
    device = experiment.model.device
    peak = peak_memory(device)
    return {
        "allowed_gb": experiment.executor.memory_gb,
        "peak_gb": round(peak, 3),
        "added_gb": round(max(0.0, peak - at_start), 3),
        "of": "the GPU" if device.type == "cuda" else "the process",
    }


def corruption_options(inputs: Inputs) -> dict[str, Any]:
    """The corruption's options with their defaults filled in."""
    return inputs.corruption.options.model_dump(mode="json")


def finding_facts(finding: Finding) -> dict[str, Any]:
    """A finding of the audit as plain data."""
    return asdict(finding)


def _baselines(experiment: Experiment) -> pd.DataFrame:
    rows = []
    for prepared in experiment.prepared:
        if prepared.index in (experiment.unknown or ()):
            continue
        base = experiment.base[prepared.index]
        for metric, clean in base.clean.items():
            draws = base.corrupted or {0: {metric: float("nan")}}
            rows += [
                {"pair": prepared.id, "seed": seed, "metric": metric, "clean": clean, "corrupted": line[metric]}
                for seed, line in draws.items()
            ]
    return pd.DataFrame(rows)

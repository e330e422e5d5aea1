"""Run the comparison: every arm as a study of its own, then what they say side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engramscope.errors import StudyError
from engramscope.locate.attention_view import Restore, attention_view, parse_head
from engramscope.locate.experiment import Progress
from engramscope.models import Model, load_model
from engramscope.pairs import PairSet
from engramscope.practices.arms import Arm, Request, arms_of
from engramscope.practices.detections import agreement, blind_spots, concentration, detections, plain
from engramscope.practices.page import write_page
from engramscope.practices.windows import window_peaks
from engramscope.results.atomic import write_text
from engramscope.results.findings import finite
from engramscope.results.folders import refuse_occupied
from engramscope.results.read import read_manifest
from engramscope.results.schema import Frame
from engramscope.study import StudyResult, run_study
from engramscope.study_file import parse_study, study_toml
from engramscope.study_inputs import Inputs, inputs_of
from engramscope.tasks import TASKS, make_pairs

#: of the heads that are looked at, and of those that are restored, where none are named
MOST_HEADS = 3
RESULT = "practices.json"


@dataclass(frozen=True)
class Practices:
    """A finished comparison on disk.

    Attributes:
        folder: holds a results folder for each arm, `practices.json` and `practices.html`.
    """

    folder: Path

    @property
    def found(self) -> dict[str, Any]:
        """What stands in `practices.json`."""
        return json.loads((self.folder / RESULT).read_text(encoding="utf-8"))

    @property
    def page(self) -> Path:
        """The page."""
        return self.folder / "practices.html"


def run_practices(
    task: str,
    model: Model | str,
    out: Path | str,
    *,
    limit: int = 100,
    draws: int = 10,
    seed: int = 0,
    resamples: int = 2000,
    heads: Sequence[str] = (),
    restore: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Practices:
    """Corruption {str, gaussian} × metric {logit_diff, prob, kl} on the heads, windows of MLPs, and attention.

    The three metrics are read from one sweep. An arm that is finished already is taken as it is with `resume`.

    Args:
        task: name of a task.
        model: a model, or its name.
        out: a new folder.
        limit: pairs.
        draws: of the noise.
        seed: of everything random.
        resamples: of bootstrap and permutation.
        heads: whose attention is looked at ("9.9"); by default the detected positive heads of the last layers.
        restore: whose values are restored in the patched run; by default the detected positive heads before those.
        options: of the task.
        resume: go on in a folder where an earlier run stopped.
        progress: called with (what, done, total).

    Raises:
        InputError: everything that is wrong with the task, the model, the heads or the folder.
    """
    folder = Path(out)
    ensure_task(task)
    refuse_occupied(folder, resume)
    held = load_model(model) if isinstance(model, str) else model
    for head in (*heads, *restore):
        parse_head(head, held.anatomy)  # refused before anything is computed
    name = held.name or "model"
    request = Request(task, {"name": name}, limit, seed, draws, held.anatomy.n_layers, resamples, options or {})
    arms = arms_of(request)
    inputs = {arm.folder: _inputs(arm, held) for arm in arms}
    results: dict[str, StudyResult] = {}
    for number, arm in enumerate(arms):
        if progress:
            progress("studies", number, len(arms))
        results[arm.folder] = _run_arm(inputs[arm.folder], held, folder / arm.folder, resume, progress)
    found = _found(arms, results)
    found["attention"] = _attention(arms[0], inputs, held, found, heads, restore, progress)
    found |= {"task": task, "model": name, "pairs": limit, "draws": draws, "seed": seed}
    write_text(folder / RESULT, json.dumps(finite(found), indent=1, ensure_ascii=False, allow_nan=False))
    write_page(folder, finite(found))
    if progress:
        progress("studies", len(arms), len(arms))
    return Practices(folder)


def _inputs(arm: Arm, model: Model) -> Inputs:
    """The arm's study with pairs made for the model at hand, which may be known to nobody by its name."""
    study = parse_study(dict(arm.study), arm.folder)
    pairs = make_pairs(
        str(study.pairs.task), study.pairs.limit, study.seed, model.tokenizer, Path(), **study.pairs.options
    )
    return inputs_of(study, study_toml(arm.study), Path(), pairs)


def _run_arm(inputs: Inputs, model: Model, out: Path, resume: bool, progress: Progress | None) -> StudyResult:
    there = resume and (out / "manifest.json").exists()
    return run_study(inputs, out, resume=there, model=model, progress=progress)


def _found(arms: Sequence[Arm], results: Mapping[str, StudyResult]) -> dict[str, Any]:
    lists, blind, spread, windows, arms_said = [], {}, {}, {}, []
    for arm in arms:
        summary, manifest = results[arm.folder].summary(), read_manifest(results[arm.folder].folder)
        warnings = [item["message"] for item in manifest["audit"] if item["severity"] == "warning"]
        arms_said.append({
            "folder": arm.folder, "part": arm.part, "variant": arm.variant, "corruption": arm.corruption,
            "gaps": manifest["findings"]["gaps"], "counts": manifest["counts"], "warnings": warnings,
        })  # fmt: skip
        if arm.part == "heads":
            lists += detections(summary, arm.variant, arm.corruption)
            blind[arm.folder] = blind_spots(summary)
            spread[arm.folder] = concentration(summary)
        else:
            windows[arm.corruption] = window_peaks(summary).to_dict("records")
    both = {rule: agreement(lists, rule).to_dict("records") for rule in ("two_sd", "max_t")}
    return {"arms": arms_said, "detections": plain(lists), "agreement": both, "blind": blind, "concentration": spread,
            "windows": windows, "tokens": _by_variant(arms, results)}  # fmt: skip


def _by_variant(arms: Sequence[Arm], results: Mapping[str, StudyResult]) -> list[dict[str, Any]]:
    """Which token to corrupt: for every head that is detected anywhere its recovery under each variant."""
    columns: dict[str, Frame] = {}
    for arm in arms:
        if arm.part == "heads" and arm.corruption == "str":
            summary: Frame = results[arm.folder].summary()
            rows = summary[summary["metric"] == "logit_diff"]
            columns[arm.variant] = rows.set_index(["layer", "head"])[["recovery", "two_sd", "detected"]]
    every = sorted({place for table in columns.values() for place in table.index[table["two_sd"].astype(bool)]})
    return [
        {"head": f"{int(layer)}.{int(head)}",
         **{name: {"recovery": float(table.loc[(layer, head), "recovery"]),
                   "two_sd": bool(table.loc[(layer, head), "two_sd"]),
                   "detected": bool(table.loc[(layer, head), "detected"])} for name, table in columns.items()}}
        for layer, head in every
    ]  # fmt: skip


def _attention(
    arm: Arm,
    inputs: Mapping[str, Inputs],
    model: Model,
    found: Mapping[str, Any],
    heads: Sequence[str],
    restore: Sequence[str],
    progress: Progress | None,
) -> dict[str, Any]:
    """Where the heads of the answer look, in clean, corrupted and patched runs, under both corruptions."""
    looked, restored = _chosen(arm, found, heads, restore)
    if not looked:
        return {"heads": [], "restored": [], "rows": []}
    pairs = inputs[arm.folder].pairs
    targets = targets_of(pairs)
    rows: list[dict[str, Any]] = []
    for corruption in ("str", "gaussian"):
        how = inputs[arm.folder.replace("-str", f"-{corruption}")].corruption
        view = attention_view(
            model, pairs, looked, targets, corruption=how, seed=arm.study["seed"], progress=progress,
            restore=Restore("v", tuple(restored)) if restored else None,
        )  # fmt: skip
        summary: Frame = view.summary
        together: Frame = summary[summary["layer"].isna()].drop(columns=["layer", "head"])
        rows += [{"corruption": corruption, **one} for one in together.to_dict("records")]
    return {"heads": looked, "restored": restored, "rows": rows}


def targets_of(pairs: PairSet) -> list[str]:
    """Spans that attention can be divided among: of two that share text in some pair the first one."""
    kept: list[str] = []
    for span in dict.fromkeys(name for pair in pairs for name in pair.spans):
        apart = all(
            pair.spans[span][1] <= pair.spans[other][0] or pair.spans[other][1] <= pair.spans[span][0]
            for pair in pairs
            for other in kept
            if span in pair.spans and other in pair.spans
        )
        kept += [span] if apart else []
    return kept


def _chosen(
    arm: Arm, found: Mapping[str, Any], heads: Sequence[str], restore: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The heads that are looked at, and those before them whose values are restored."""
    positive = next(
        (one["positive"] for one in found["detections"]
         if (one["variant"], one["corruption"], one["metric"], one["rule"])
         == (arm.variant, "str", "logit_diff", "two_sd")),
        [],
    )  # fmt: skip
    layers = sorted({int(name.split(".")[0]) for name in positive})
    last = layers[-1] if layers else 0
    looked = list(heads) or [name for name in positive if int(name.split(".")[0]) == last][:MOST_HEADS]
    first = min((int(name.split(".")[0]) for name in looked if name.split(".")[0].isdigit()), default=0)
    earlier = [name for name in positive if int(name.split(".")[0]) < first][:MOST_HEADS]
    return looked, list(restore) or earlier


def ensure_task(name: str) -> None:
    """Refuse an unknown task, and one whose pairs are made for another corruption than other tokens.

    Raises:
        UnknownNameError: no task has this name.
        StudyError: its pairs have no corrupted prompt of their own.
    """
    if TASKS.get(name).corruption != "str":
        raise StudyError(
            f"The task {name!r} is made for the corruption {TASKS.get(name).corruption!r}; the comparison needs pairs "
            "with a corrupted prompt of their own."
        )

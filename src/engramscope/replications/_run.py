"""Reproduce a published table or figure: run its studies, measure its values, and compare."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engramscope.errors import ModelError, PairsError, ResultsError, StudyError
from engramscope.locate.experiment import Progress
from engramscope.models import Model, load_model
from engramscope.provenance import versions
from engramscope.replications import _record
from engramscope.replications._arms import PAIRS_FILE, Arms, Request, build_arms
from engramscope.replications._effects import COLUMNS
from engramscope.replications._file import Replication, read_replication
from engramscope.replications._page import write_page
from engramscope.replications._results import ArmResult, Results, ViewResult
from engramscope.replications._views import as_reason, make_view
from engramscope.results.atomic import write_json
from engramscope.results.folders import refuse_occupied
from engramscope.results.read import read_effects, read_manifest
from engramscope.study import run_study

RESULT, PAGE = "replication.json", "replication.html"


@dataclass(frozen=True)
class Reproduction:
    """A finished reproduction on disk.

    Attributes:
        folder: holds a results folder for each study, `replication.json` and `replication.html`.
        record: what stands in `replication.json`.
    """

    folder: Path
    record: Mapping[str, Any]

    @property
    def page(self) -> Path:
        """The page."""
        return self.folder / PAGE


def reproduce(
    name: str | Replication,
    out: Path | str,
    *,
    model: Model | str | None = None,
    facts: Sequence[Path | str] = (),
    quick: bool = False,
    resume: bool = False,
    as_published: bool = False,
    held: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Reproduction:
    """Run the studies of a replication and compare what they find with what was published.

    Every value is measured on any model; it is compared only on the model that it was published for.

    Args:
        name: of the replication, or one that is read already.
        out: a new folder, or with `resume` that of an earlier run.
        model: another model than the published one.
        facts: files of facts, for replications that were published with facts which are not part of Engramscope.
        quick: fewer pairs, draws and resamples.
        resume: take studies that are complete as they are, and go on with one that was interrupted.
        as_published: `model` is the published model under another name (a folder, a mirror).
        held: how the model is held: keys of a study's `[model]` section.
        progress: called with (what, done, total).

    Raises:
        InputError: the name, the model, the facts or the folder is at fault.
        CheckError: a recomputed sample of a study's cells does not agree.
    """
    replication = read_replication(name) if isinstance(name, str) else name
    folder = Path(out)
    request = _request(replication, model, facts, quick, as_published, held or {})
    _refuse_occupied(folder, replication.name, resume)
    tell = progress or _silent
    started = datetime.now(UTC)
    loaded = _loaded(model, request, tell)
    arms = build_arms(replication, request, loaded, folder)
    finished, why_not = _run_arms(replication, arms, loaded, folder, resume, request.published, tell)
    views: dict[str, ViewResult] = {}
    for view in replication.views:
        section = replication.file.view[view]
        if section.arm in arms.inputs:
            views[view] = make_view(section, arms.inputs[section.arm], loaded, tell)
        else:
            views[view] = ViewResult(why_not=arms.why_not[section.arm])
    results = Results(
        arms={arm: _arm_result(finished[place]) for arm, place in arms.folders.items() if place in finished},
        views=views,
        layers=loaded.anatomy.n_layers,
        published_layers=replication.file.layers,
        published=request.published,
        model=replication.file.model,
        why_not=why_not,
    )
    record = {
        **_record.described(replication, request, arms.remarks),
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "arms": {arm: _arm_facts(arm, arms, finished) for arm in results.arms},
        **_record.judged(replication, results),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RESULT, record)
    write_page(folder / PAGE, record)
    return Reproduction(folder, record)


def _silent(what: str, done: int, total: int) -> None:
    del what, done, total


def _request(
    replication: Replication,
    model: Model | str | None,
    facts: Sequence[Path | str],
    quick: bool,
    as_published: bool,
    held: Mapping[str, Any],
) -> Request:
    """What is asked for, with every fault that can be told before anything is loaded.

    Raises:
        StudyError: facts that are missing, or that the replication has no use for.
    """
    file = replication.file
    named = model.name if isinstance(model, Model) else model
    if isinstance(model, Model):
        held = {"dtype": str(model.dtype).removeprefix("torch."), "device": str(model.device)}
    chosen = named or (file.instead if file.unavailable else file.model)
    published = as_published or (chosen in {file.model, *file.aliases} and not (file.unavailable and named is None))
    paths = tuple(Path(path).absolute() for path in facts)
    faults = [f"There is no file {str(path)!r} of facts." for path in paths if not path.is_file()]
    if paths and file.facts is None:
        faults.append(f"{replication.name} asks for no facts; leave out --facts.")
    if file.facts is not None and published and not paths and not file.given:
        faults.append(
            f"{replication.name} was published with {file.facts.what}, which are not part of Engramscope; give them "
            "with --facts. (Another --model is asked about facts of the bundled encyclopaedia.)"
        )
    if as_published and named is None:
        faults.append("--as-published says that --model is the published model; name one.")
    if faults:
        raise StudyError(faults)
    return Request({"name": chosen, **held}, published, paths, quick)


def _refuse_occupied(folder: Path, name: str, resume: bool) -> None:
    refuse_occupied(folder, resume)
    try:
        other = json.loads((folder / RESULT).read_text(encoding="utf-8")).get("name")
    except (OSError, ValueError, AttributeError):
        return
    if other != name:
        raise ResultsError(f"{folder} holds the reproduction of {other}; give {name} a folder of its own.")


def _loaded(model: Model | str | None, request: Request, tell: Progress) -> Model:
    if isinstance(model, Model):
        return model
    tell("loading the model", 0, 1)
    loaded = load_model(**request.model)
    tell("loading the model", 1, 1)
    return loaded


def _run_arms(
    replication: Replication, arms: Arms, model: Model, folder: Path, resume: bool, published: bool, tell: Progress
) -> tuple[dict[str, Path], dict[str, str]]:
    """Run every study once.

    Returns:
        Folder name -> its path; arm -> why it could not be run on a model that is not the published one.

    Raises:
        InputError: a study is at fault; on another model, only if no study could be run.
    """
    wanted = list(dict.fromkeys(arms.folders[arm] for arm in replication.arms if arm in arms.folders))
    finished: dict[str, Path] = {}
    failed: dict[str, PairsError | ModelError] = {}
    for number, place in enumerate(wanted):
        tell("studies", number, len(wanted))
        path = folder / place
        there = resume and (path / "manifest.json").exists()
        try:
            finished[place] = run_study(arms.inputs[place], path, resume=there, model=model, progress=tell).folder
        except (PairsError, ModelError) as error:
            if published:
                raise
            failed[place] = error
    tell("studies", len(wanted), len(wanted))
    if failed and not finished and not replication.views:
        raise next(iter(failed.values()))
    reasons = {arm: as_reason(failed[place]) for arm, place in arms.folders.items() if place in failed}
    return finished, {**arms.why_not, **reasons}


def _arm_result(path: Path) -> ArmResult:
    return ArmResult(lambda: read_effects(path, COLUMNS))


def _arm_facts(arm: str, arms: Arms, finished: Mapping[str, Path]) -> dict[str, Any]:
    """What a reader should know of a study."""
    place = arms.folders[arm]
    manifest = read_manifest(finished[place])
    warnings = [item["message"] for item in manifest.get("audit") or () if item["severity"] == "warning"]
    return {
        "folder": place,
        "study_hash": manifest["study_hash"],
        "counts": manifest["counts"],
        "known": manifest.get("known"),
        "corruption": manifest["corruption"],
        "weight_hash": manifest["model"]["weight_hash"],
        "warnings": warnings,
    }


__all__ = ["PAGE", "PAIRS_FILE", "RESULT", "Reproduction", "reproduce"]

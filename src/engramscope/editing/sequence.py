"""Sequential editing: edits that are kept, one upon another, and what is left of the model after so many."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from engramscope.edit._base import Editor
from engramscope.edit.applied import applied_to
from engramscope.edit.edit import Edit, combined
from engramscope.edit.storage import load_edit, save_edit
from engramscope.editing.chosen import editor_settings
from engramscope.editing.folder import outcome_folder
from engramscope.editing.inputs import Materials, first_records
from engramscope.editing.journal import Journal
from engramscope.editing.outcome import hooks_on
from engramscope.editing.sequence_findings import sequence_findings
from engramscope.editing.sequence_page import write_sequence_files
from engramscope.editing.table4 import common_settings, ensure_unchanged, ready_editors, weights_of
from engramscope.errors import InputError, ModelError, ResultsError
from engramscope.evaluate.evaluate import EvaluateOptions, evaluate_records
from engramscope.evaluate.perplexity import perplexity_of
from engramscope.evaluate.protocol import protocol_of
from engramscope.models.model import Model
from engramscope.provenance import machine, model_facts, versions
from engramscope.records.record import Record
from engramscope.results.atomic import disk_sentence

#: (what, done, total)
Progress = Callable[[str, int, int], None]
KIND = "sequence"
_STEPS = (1, 2, 5)
_STATES = "edits"


@dataclass(frozen=True)
class Sequences:
    """Finished sequences on disk.

    Attributes:
        folder: holds `sequence.json`, `curves.csv` and `report.html`.
        findings: what stands in `sequence.json`.
    """

    folder: Path
    findings: Mapping[str, Any]

    @property
    def page(self) -> Path:
        """The page."""
        return self.folder / "report.html"


@dataclass(frozen=True)
class Plan:
    """How edits are kept and when the model is measured.

    Attributes:
        records: whose facts are edited, in this order.
        stops: numbers of facts after which the model is measured, the last one is all of them.
        batch: facts that are given to the editor at once.
        sample: records that are measured at most, drawn among those edited so far.
        seed: of the edits and the draws.
        options: what is measured.
        materials: held-out texts and reference texts.
    """

    records: tuple[Record, ...]
    stops: tuple[int, ...]
    batch: int
    sample: int
    seed: int
    options: EvaluateOptions
    materials: Materials


def stops_up_to(count: int) -> tuple[int, ...]:
    """1, 2, 5, 10, 20, 50, … up to a number, and the number itself."""
    found = {count}
    size = 1
    while size <= count:
        found |= {step * size for step in _STEPS if step * size <= count}
        size *= 10
    return tuple(sorted(found))


def run_sequence(
    model: Model, editors: Mapping[str, Editor], materials: Materials, out: Path | str, *, count: int | None = None,
    batch: int = 1, sample: int = 100, options: EvaluateOptions | None = None, seed: int = 0, resume: bool = False,
    progress: Progress | None = None,
) -> Sequences:  # fmt: skip
    """Edit fact after fact and keep the edits; measure the facts edited so far, and the model, now and then.

    Whenever the model is measured, the edits so far are put together as one, written, and the model goes on from the
    unedited weights with that one edit in it. So a run that was stopped goes on from the last such point and comes to
    the same numbers, and memory does not grow with the number of edits. Afterwards the model is as it was.

    Args:
        model: the model without edits.
        editors: label -> editor.
        materials: records, held-out texts, reference texts.
        out: a new folder, or with `resume` one that was begun.
        count: how many records, from the first on.
        batch: facts that are given to an editor at once; one that solves for many facts then does.
        sample: records that are measured at most.
        options: what is measured; by default no texts are written.
        seed: of the edits, the draws and the bootstrap.
        resume: go on in a folder that was begun.
        progress: called with (what, done, total).

    Raises:
        InputError: no editor can edit this model, or the model has edits in it.
        ResultsError: the folder holds something else or was begun with other settings, or the disk refuses.
        CheckError: the model is not what it was after the edits were taken out.
    """
    if applied_to(model.hf):
        raise InputError(f"{model.name} has edits in it; sequences begin with the model without them.")
    records = first_records(materials.records, count)
    chosen = options or EvaluateOptions(generation=False, plus=False, divergence=False, seed=seed)
    plan = Plan(records, stops_up_to(len(records)), batch, sample, seed, chosen, materials)
    ready, skipped = ready_editors(model, editors, records[0])
    if not ready:
        raise InputError(["No editor is left:", *(f"{one['label']}: {one['why']}" for one in skipped)])
    settings = {label: editor_settings(editor, model) | identity for label, (editor, identity) in ready.items()}
    common = common_settings(model, materials, chosen, seed) | {
        "stops": list(plan.stops), "batch": batch, "sample": sample,
    }  # fmt: skip
    weights, hooks = weights_of(model), hooks_on(model)
    with outcome_folder(Path(out), KIND, common, settings, resume=resume) as journals:
        before = _measured(model, plan, len(records), None, [])
        for number, (label, (editor, _)) in enumerate(ready.items()):
            if progress:
                progress("editors", number, len(ready))
            _run_one(model, editor, plan, journals[label], Path(out) / _STATES / label, progress)
            ensure_unchanged(model, weights, hooks)
        rows = {label: [before | {"position": 0}, *journal.read()] for label, journal in journals.items()}
        about = _about(model, plan) | {"settings": settings, "skipped": skipped}
        findings = sequence_findings(rows, records, about, seed=seed)
        write_sequence_files(Path(out), findings)
    if progress:
        progress("editors", len(ready), len(ready))
    return Sequences(Path(out), findings)


def _about(model: Model, plan: Plan) -> dict[str, Any]:
    given = plan.materials
    return {
        "kind": KIND, "model": model_facts(model), "seed": plan.seed, "stops": list(plan.stops), "batch": plan.batch,
        "sample": plan.sample, "texts": len(given.texts), "texts_from": given.texts_from,
        "records_available": len(given.records), "records_notes": list(given.records.remarks), "versions": versions(),
        "machine": machine(),
        "protocol": protocol_of(plan.records, plan.options, given.references, data=given.records.name,
                                data_sha256=given.records.sha256),
    }  # fmt: skip


def _run_one(
    model: Model, editor: Editor, plan: Plan, journal: Journal, states: Path, progress: Progress | None
) -> None:
    """Go on with one editor from the last point that was written."""
    rows = journal.read()
    position = rows[-1]["position"] if rows else 0
    failed: list[dict[str, str]] = list(rows[-1]["failed"]) if rows else []
    whole = load_edit(states / f"{position}.safetensors") if rows and rows[-1]["edits"] else None
    added: list[Edit] = []
    seconds = 0.0
    try:
        if whole is not None:
            whole.apply(model)
        while position < len(plan.records):
            stop = next(stop for stop in plan.stops if stop > position)
            facts = [record.fact for record in plan.records[position : min(position + plan.batch, stop)]]
            if progress:
                progress(f"{editor.name}: edits", position, len(plan.records))
            start = time.perf_counter()
            try:
                edit = editor.compute(model, facts, seed=plan.seed)
            except (ModelError, ResultsError):
                raise
            except InputError as error:
                failed += [{"record": fact.id, "why": error.faults[0]} for fact in facts]
            else:
                edit.apply(model)
                added.append(edit)
            seconds += time.perf_counter() - start
            position += len(facts)
            if position < stop:
                continue
            whole, change = _as_one(model, whole, added)
            row = _measured(model, plan, position, whole, failed) | {"seconds": seconds, "change": change}
            _write(journal, row, whole, states)
            seconds = 0.0
    finally:
        _take_out(model)
    if progress:
        progress(f"{editor.name}: edits", len(plan.records), len(plan.records))


def _as_one(model: Model, whole: Edit | None, added: list[Edit]) -> tuple[Edit | None, dict[str, float]]:
    """Put the edits in as one, and say how large it is: |ΔW| / |W| of each parameter, W unedited.

    What comes after must not depend on how it came about, so the edits that are in the model are taken out first.
    """
    _take_out(model)
    parts = [*([whole] if whole is not None else []), *added]
    added.clear()
    if not parts:
        return None, {}
    found = combined(parts) if len(parts) > 1 else parts[0]
    change = found.norms(model)
    found.apply(model)
    return found, change


def _take_out(model: Model) -> None:
    """Revert every edit that is in the model, the last one first."""
    for edit in reversed(applied_to(model.hf)):
        assert isinstance(edit, Edit)
        edit.revert(model)


def _write(journal: Journal, row: Mapping[str, Any], whole: Edit | None, states: Path) -> None:
    """Keep the edits so far, and then what was measured with them; the edits of the point before are not needed."""
    if whole is not None:
        try:
            states.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResultsError(disk_sentence(states, error)) from None
        save_edit(whole, states / f"{row['position']}.safetensors")
    journal.append(row)
    for old in states.glob("*.safetensors"):
        if old.stem != str(row["position"]):
            with suppress(OSError):
                old.unlink()


def _measured(
    model: Model, plan: Plan, position: int, whole: Edit | None, failed: Sequence[Mapping[str, str]]
) -> dict[str, Any]:  # fmt: skip
    """What the model does on the facts edited so far, or a sample of them, and on held-out texts."""
    chosen = range(position)
    if position > plan.sample:
        draw = np.random.default_rng([plan.seed, position])
        chosen = sorted(draw.choice(position, plan.sample, replace=False).tolist())
    cases = evaluate_records(
        model, [plan.records[index] for index in chosen], options=plan.options, references=plan.materials.references
    )
    texts = plan.materials.texts
    perplexity = perplexity_of(model, texts) if texts else None
    edits = len(whole.facts) if whole is not None else 0
    return {
        "position": position, "edits": edits, "failed": list(failed),
        "cases": [one.as_dict() for one in cases],
        "perplexity": perplexity.value if perplexity is not None and isfinite(perplexity.value) else None,
        "collapsed": bool(perplexity and perplexity.collapsed) or any(one.collapsed for one in cases),
        "seconds": 0.0, "change": {},
    }  # fmt: skip

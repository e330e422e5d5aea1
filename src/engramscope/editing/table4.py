"""The table that compares editors: all of them on the same records, one edit at a time, on the unedited model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from engramscope.edit._base import Editor
from engramscope.edit.applied import applied_to
from engramscope.edit.matrices import down_projection
from engramscope.editing.chosen import editor_settings
from engramscope.editing.findings import UNEDITED, table_findings
from engramscope.editing.folder import outcome_folder
from engramscope.editing.inputs import Materials, first_records
from engramscope.editing.journal import Journal
from engramscope.editing.outcome import Measuring, Outcome, edited_outcome, finished, hooks_on
from engramscope.editing.table_files import write_table_files
from engramscope.errors import CheckError, InputError, ModelError, ResultsError, SiteError
from engramscope.evaluate.case import CaseResult
from engramscope.evaluate.evaluate import EvaluateOptions, evaluate_record
from engramscope.evaluate.perplexity import perplexity_of
from engramscope.evaluate.protocol import protocol_of, records_hash
from engramscope.models.model import Model, hash_of
from engramscope.models.offload import saved_tensors
from engramscope.provenance import machine, model_facts, tokenizer_hash, versions
from engramscope.records.record import Record

#: (what, done, total)
Progress = Callable[[str, int, int], None]
KIND = "table4"
#: edits between two looks at every weight of the model
_LOOK_EVERY = 50
#: an editor that edits none of so many first records is given up
_PATIENCE = 3


@dataclass(frozen=True)
class Table4:
    """A finished table on disk.

    Attributes:
        folder: holds `table4.json`, `table.csv`, `differences.csv`, `values.parquet` and `report.html`.
        findings: what stands in `table4.json`.
    """

    folder: Path
    findings: Mapping[str, Any]

    @property
    def page(self) -> Path:
        """The page."""
        return self.folder / "report.html"


def run_table4(
    model: Model, editors: Mapping[str, Editor], materials: Materials, out: Path | str, *, count: int | None = None,
    options: EvaluateOptions | None = None, seed: int = 0, resume: bool = False, progress: Progress | None = None,
) -> Table4:  # fmt: skip
    """Edit each record with each editor, measure it, and set the editors side by side.

    Each edit is computed on the unedited model, measured, and taken out again, which is checked. An outcome is on the
    disk as soon as it is there; with `resume` what is there is not computed again, and what comes out is what would
    have come out without the stop, but for the times. More records and more editors may be added that way.

    Args:
        model: the model without edits.
        editors: label -> editor.
        materials: records, held-out texts, reference texts.
        out: a new folder, or with `resume` one that was begun.
        count: how many records, from the first on; all by default.
        options: what is measured.
        seed: of the edits, the generated texts and the bootstrap.
        resume: go on in a folder that was begun.
        progress: called with (what, done, total).

    Raises:
        InputError: no editor can edit this model, the model has edits in it, or no record can be asked.
        ResultsError: the folder holds something else or was begun with other settings, or the disk refuses.
        CheckError: the model is not what it was after an edit was taken out.
    """
    if applied_to(model.hf):
        raise InputError(f"{model.name} has edits in it; the table is about edits of the model without them.")
    chosen = options or EvaluateOptions(seed=seed)
    records = first_records(materials.records, count)
    ready, skipped = ready_editors(model, editors, records[0])
    if not ready:
        raise InputError(["No editor is left for the table:", *(f"{one['label']}: {one['why']}" for one in skipped)])
    settings = {label: editor_settings(editor, model) | identity for label, (editor, identity) in ready.items()}
    common = common_settings(model, materials, chosen, seed)
    with outcome_folder(Path(out), KIND, common, {UNEDITED: {}, **settings}, resume=resume) as journals:
        base = perplexity_of(model, materials.texts) if materials.texts else None
        measuring = Measuring(chosen, materials, base, seed)
        working = {label: editor for label, (editor, _) in ready.items()}
        given_up = _fill(model, working, records, measuring, journals, progress)
        skipped += [{"label": label, "editor": working[label].name, "why": why} for label, why in given_up.items()]
        outcomes = {label: finished(journal.read()) for label, journal in journals.items() if label not in given_up}
        used = {label: [found[record.id] for record in records] for label, found in outcomes.items()}
        if all(one.failed for one in used[UNEDITED]):
            raise InputError(f"No record can be asked. {used[UNEDITED][0].status.removeprefix('failed: ')}")
        about = {
            "kind": KIND, "model": model_facts(model), "settings": settings, "skipped": skipped, "seed": seed,
            "perplexity": None if base is None else base.value, "texts": len(materials.texts),
            "texts_from": materials.texts_from, "records_available": len(materials.records),
            "records_notes": list(materials.records.remarks), "versions": versions(), "machine": machine(),
            "protocol": protocol_of(records, chosen, materials.references, data=materials.records.name,
                                 data_sha256=materials.records.sha256),
        }  # fmt: skip
        findings = table_findings(used, records, about, seed=seed, progress=progress)
        write_table_files(Path(out), findings, used)
    return Table4(Path(out), findings)


def common_settings(model: Model, materials: Materials, options: EvaluateOptions, seed: int) -> dict[str, Any]:
    """What all outcomes of a folder must share; the number of records is not among it, so that more can be added."""
    references = materials.references
    return {
        "model": {
            "name": model.name, "weights": model.weight_hash(), "tokenizer": tokenizer_hash(model.tokenizer),
            "dtype": str(model.dtype).removeprefix("torch."),
        },
        "records": {"name": materials.records.name, "sha256": records_hash(materials.records)},
        "texts": materials.texts_sha256,
        "references": None if references is None else (references.sha256 or references.source),
        "options": options.model_dump(mode="json"),
        "seed": seed,
        "engramscope": versions()["engramscope"],
    }  # fmt: skip


def ready_editors(
    model: Model, editors: Mapping[str, Editor], record: Record
) -> tuple[dict[str, tuple[Editor, dict[str, Any]]], list[dict[str, str]]]:
    """The editors that can edit a model, and why the others cannot.

    Returns:
        label -> the editor and what identifies its trained network, if it has one; and label and reason of each that
        was left out.
    """
    ready: dict[str, tuple[Editor, dict[str, Any]]] = {}
    skipped: list[dict[str, str]] = []
    for label, editor in editors.items():
        try:
            ready[label] = (editor, _identity(model, editor, record))
        except InputError as error:
            skipped.append({"label": label, "editor": editor.name, "why": error.faults[0]})
    return ready, skipped


def _identity(model: Model, editor: Editor, record: Record) -> dict[str, Any]:
    """What an editor's options do not say about it; raises where it cannot edit the model."""
    if not editor.trained:
        try:
            down_projection(model, 0)
        except SiteError as error:
            raise InputError(error.faults[0]) from None
        return {}
    # a trained network is cheap to use, and a first edit says whether there is one, and which
    diagnostics = editor.compute(model, record.fact).diagnostics
    file = Path(str(diagnostics.get("weights", "")))
    return {"network": sha256(file.read_bytes()).hexdigest()} if file.is_file() else {}


def _fill(
    model: Model, editors: Mapping[str, Editor], records: Sequence[Record], measuring: Measuring,
    journals: Mapping[str, Journal], progress: Progress | None,
) -> dict[str, str]:  # fmt: skip
    """Compute what the journals lack, record by record, so that at any time all editors have the same records.

    Returns:
        label -> why, of the editors that edited none of the first few records and were given up.
    """
    there = {label: finished(journal.read()) for label, journal in journals.items()}
    lacking = [record for record in records if any(record.id not in found for found in there.values())]
    every, hooks = weights_of(model), hooks_on(model)
    refusals = {label: [] for label, found in there.items() if all(one.failed for one in found.values())}
    given_up: dict[str, str] = {}
    edits = 0
    for done, record in enumerate(lacking):
        if progress:
            progress("records", len(records) - len(lacking) + done, len(records))
        known = record.id in there[UNEDITED]
        try:
            before = _unedited(model, record, measuring, whole=not known)
        except (ModelError, ResultsError):
            raise  # not about this record
        except InputError as error:
            # by nobody, and that is not an editor's fault
            outcome = Outcome(record.id, f"failed: {error.faults[0]}").as_dict()
            for label in (UNEDITED, *editors):
                if record.id not in there[label]:
                    journals[label].append(outcome)
            continue
        if not known:
            journals[UNEDITED].append(Outcome(record.id, case=before).as_dict())
        for number, (label, editor) in enumerate(editors.items()):
            if record.id in there[label] or label in given_up:
                continue
            if progress:
                progress("editors", number, len(editors))
            outcome = edited_outcome(model, editor, record, before, measuring)
            if (reason := _keep(outcome, journals[label], refusals, label)) is not None:
                given_up[label] = reason
            edits += 1
            if edits % _LOOK_EVERY == 0:
                ensure_unchanged(model, every, hooks)
        if progress:
            progress("editors", len(editors), len(editors))
    for label, waiting in refusals.items():
        for outcome in waiting if label not in given_up else ():
            journals[label].append(outcome.as_dict())
    ensure_unchanged(model, every, hooks)
    if progress:
        progress("records", len(records), len(records))
    return given_up


def _keep(outcome: Outcome, journal: Journal, refusals: dict[str, list[Outcome]], label: str) -> str | None:
    """Write an outcome; why the editor is given up where it has refused the first few records, each of them.

    An editor that refuses everything lacks something that all edits need, and would ask for it again each time.
    """
    if label in refusals and outcome.failed:
        refusals[label].append(outcome)
        return outcome.status.removeprefix("failed: ") if len(refusals[label]) == _PATIENCE else None
    for earlier in refusals.pop(label, ()):
        journal.append(earlier.as_dict())
    journal.append(outcome.as_dict())
    return None


def _unedited(model: Model, record: Record, measuring: Measuring, *, whole: bool) -> CaseResult:
    """A record without an edit; where that is on the disk already, only the distributions, which are not kept."""
    options = measuring.options
    if not whole:
        options = options.model_copy(update={"generation": False, "generated": False})
    return evaluate_record(model, record, options=options, references=measuring.materials.references)


def weights_of(model: Model) -> str:
    """SHA-256 of all weights as they are now, never from memory."""
    return hash_of(saved_tensors(model.hf))


def ensure_unchanged(model: Model, weights: str, hooks: int) -> None:
    """Check that a model without edits is, to the bit, what it was.

    Args:
        model: the model.
        weights: as `weights_of` gave it before.
        hooks: as `hooks_on` gave it before.

    Raises:
        CheckError: it is not.
    """
    if weights_of(model) != weights or hooks_on(model) != hooks or applied_to(model.hf):
        raise CheckError("The model is not what it was before the edits; nothing measured since is sound.")

"""One record, one editor: the edit, computed on the unedited model, measured, and taken out again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engramscope.edit._base import Editor
from engramscope.edit.edit import fingerprint
from engramscope.editing.inputs import Materials
from engramscope.errors import CheckError, InputError, ModelError, ResultsError
from engramscope.evaluate.case import CaseResult
from engramscope.evaluate.evaluate import EvaluateOptions, evaluate_edit
from engramscope.evaluate.perplexity import Perplexity
from engramscope.models.model import Model
from engramscope.records.record import Record

OK = "ok"


@dataclass(frozen=True)
class Outcome:
    """What came of one edit.

    Attributes:
        record: id of the record.
        status: "ok", or "failed: " and why there was no edit.
        case: the record's measures with the edit; None where there was no edit.
        health: norms, alignments, perplexities and warnings (`Health.as_dict`).
        edit_s: seconds that the edit took.
        measure_s: seconds that its measures took.
        notes: what the editor said.
    """

    record: str
    status: str = OK
    case: CaseResult | None = None
    health: Mapping[str, Any] | None = None
    edit_s: float = 0.0
    measure_s: float = 0.0
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "record": self.record, "status": self.status, "case": self.case.as_dict() if self.case else None,
            "health": self.health, "edit_s": self.edit_s, "measure_s": self.measure_s, "notes": list(self.notes),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Outcome:
        """What `as_dict` wrote."""
        case = CaseResult.from_dict(saved["case"]) if saved["case"] is not None else None
        return cls(saved["record"], saved["status"], case, saved["health"], saved["edit_s"], saved["measure_s"],
                   tuple(saved["notes"]))  # fmt: skip

    @property
    def failed(self) -> bool:
        """There was no edit."""
        return self.status != OK


@dataclass(frozen=True)
class Measuring:
    """How edits are measured, the same for every editor and record.

    Attributes:
        options: what is measured.
        materials: records, held-out texts, reference texts.
        perplexity: of the held-out texts before any edit; None where there are none.
        seed: of the edits.
    """

    options: EvaluateOptions
    materials: Materials
    perplexity: Perplexity | None
    seed: int


def edited_outcome(
    model: Model, editor: Editor, record: Record, before: CaseResult, measuring: Measuring
) -> Outcome:  # fmt: skip
    """Compute an edit on the unedited model, measure it, and take it out.

    Args:
        model: the model without edits; it is left as it was, to the bit.
        editor: the editor.
        record: the record; its fact is edited.
        before: its measures without an edit.
        measuring: how.

    Returns:
        An outcome; an edit that the editor refuses is one with a status that says why.

    Raises:
        SiteError: the editor's settings do not go with the model.
        ResultsError: the disk refuses.
        CheckError: an edited parameter is not what it was before.
    """
    start = time.perf_counter()
    try:
        edit = editor.compute(model, record.fact, seed=measuring.seed)
    except (ModelError, ResultsError):
        raise  # not about this record
    except InputError as error:
        return Outcome(record.id, f"failed: {error.faults[0]}", edit_s=time.perf_counter() - start)
    computed = time.perf_counter()
    found = evaluate_edit(
        model, edit, record, options=measuring.options, references=measuring.materials.references, before=before,
        texts=measuring.materials.texts, perplexity_before=measuring.perplexity,
    )  # fmt: skip
    ensure_as_before(model, edit.before, f"{editor.name} on the record {record.id!r}")
    return Outcome(record.id, OK, found.after, found.health.as_dict(), computed - start,
                   time.perf_counter() - computed, edit.notes)  # fmt: skip


def ensure_as_before(model: Model, before: Mapping[str, str], what: str) -> None:
    """Check that parameters are, to the bit, what they were.

    Args:
        model: the model.
        before: name -> SHA-256.
        what: what was undone, for the message.

    Raises:
        CheckError: one of them is not.
    """
    parameters = dict(model.hf.named_parameters())
    changed = [name for name, known in before.items() if fingerprint(parameters[name]) != known]
    if changed:
        raise CheckError(f"After {what} was taken out, {changed[0]} is not what it was; what follows would be unsound.")


def hooks_on(model: Model) -> int:
    """How many hooks are on the modules of a model."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.hf.modules())


def finished(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Outcome]:
    """Outcomes of a journal by their records; of several for one record the last."""
    return {outcome.record: outcome for outcome in map(Outcome.from_dict, outcomes)}

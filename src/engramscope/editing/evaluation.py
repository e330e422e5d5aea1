"""The measures of a saved edit, or of a model as it is, on records."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engramscope.edit.edit import Edit
from engramscope.edit.storage import load_edit
from engramscope.editing.findings import UNEDITED, table_findings
from engramscope.editing.inputs import Materials, first_records, held_out, materials
from engramscope.editing.one_edit import EDIT
from engramscope.editing.outcome import Outcome
from engramscope.editing.table4 import Table4
from engramscope.editing.table_files import EVALUATION, write_table_files
from engramscope.errors import InputError, ResultsError
from engramscope.evaluate.case import CaseResult
from engramscope.evaluate.evaluate import EvaluateOptions, evaluate_records
from engramscope.evaluate.health import health_of
from engramscope.evaluate.perplexity import perplexity_of
from engramscope.evaluate.protocol import protocol_of, records_hash
from engramscope.models.model import Model
from engramscope.provenance import machine, model_facts, versions
from engramscope.records.fact import Fact
from engramscope.records.read import Records
from engramscope.records.record import Record
from engramscope.results.atomic import disk_sentence
from engramscope.results.folders import refuse_occupied

#: (what, done, total)
Progress = Callable[[str, int, int], None]
KIND = "evaluation"
#: records whose prompts share batches
_TOGETHER = 16


@dataclass(frozen=True)
class Subject:
    """What is evaluated: an edit of a model, or a model as it is.

    Attributes:
        edit: the edit; None for a model as it is.
        path: where the edit was found; None for a model.
    """

    edit: Edit | None = None
    path: Path | None = None


def edit_at(name: str) -> Subject:
    """The edit in a file, or in a folder that `engramscope edit` wrote; none where the name is that of a model.

    Raises:
        InputError: a file is there that holds no edit.
    """
    path = Path(name).expanduser()
    if path.is_file() or path.suffix == ".safetensors":
        return Subject(load_edit(path), path)
    if (path / EDIT).is_file():
        return Subject(load_edit(path / EDIT), path / EDIT)
    return Subject()


def records_of_edit(edit: Edit, records: Records | None) -> Records:
    """The records whose facts an edit changes; without records, one for each fact of the edit, of its prompt alone.

    Raises:
        InputError: no record is about a fact of the edit.
    """
    if records is None:
        names = [fact.id for fact in edit.facts]
        if not all(names) or len(set(names)) < len(names):
            names = [f"fact {number}" for number in range(1, len(edit.facts) + 1)]
        made = tuple(Record(name, fact) for name, fact in zip(names, edit.facts, strict=True))
        return Records(made, "the facts of the edit", "edit", records_hash(made))
    asked = {_asked(fact) for fact in edit.facts}
    found = tuple(record for record in records if _asked(record.fact) in asked)
    if not found:
        first = edit.facts[0]
        raise InputError(
            f"None of the {len(records):,} records is about a fact of the edit ({first.prompt!r} → {first.target!r}); "
            "give the records that it was made from, or --all to ask them all, whatever they are about."
        )
    about = len(asked & {_asked(record.fact) for record in found})
    if about == len(asked):
        return replace(records, records=found)
    said = f"The edit has {len(asked):,} facts, and the records are about {about:,} of them."
    return replace(records, records=found, notes=(*records.notes, said))


def evaluated_materials(
    model: Model, subject: Subject, records: str = "", *, count: int | None = None, everything: bool = False,
    texts: str | None = None, references: str | None = None, seed: int = 0, progress: Progress | None = None,
) -> Materials:  # fmt: skip
    """Read what an edit, or a model, is evaluated on.

    Args:
        model: the model.
        subject: what is evaluated.
        records: a file, or "bundled"; "" for the facts of the edit.
        count: the first so many records; all by default.
        everything: also records that the edit does not change.
        texts: see `materials`.
        references: see `materials`.
        seed: of drawn targets.
        progress: called with (what, done, total).

    Raises:
        InputError: something cannot be read, no record is about the edit, or a model comes without records.
    """
    edit = subject.edit
    if not records:
        if edit is None:
            raise InputError("Say what the model is to be asked: --records FILE, or --records bundled.")
        return Materials(_first(records_of_edit(edit, None), count), *held_out(model, texts))
    read = materials(model, records, texts=texts, references=references, seed=seed, progress=progress)
    kept = read.records if edit is None or everything else records_of_edit(edit, read.records)
    return replace(read, records=_first(kept, count))


def run_evaluation(
    model: Model, subject: Subject, given: Materials, out: Path | str | None = None, *,
    before: Model | None = None, options: EvaluateOptions | None = None, seed: int = 0,
    progress: Progress | None = None,
) -> Table4:  # fmt: skip
    """Measure an edit, or a model, on records, with all that it holds at once.

    Args:
        model: the model; for an edit the one that it was computed on.
        subject: what is evaluated.
        given: the records, held-out texts and reference texts.
        out: a new folder; None writes nothing.
        before: the model to compare with; an edit is compared with its model without it.
        options: what is measured.
        seed: of the generated texts and the bootstrap.
        progress: called with (what, done, total).

    Raises:
        InputError: the edit is of another model, or a record cannot be asked.
        ResultsError: the folder is occupied, or the disk refuses.
    """
    chosen = options or EvaluateOptions(seed=seed)
    if out is not None:
        refuse_occupied(Path(out))
    if before is not None:
        given, chosen = _comparable(model, before, given, chosen)
    edit, records, texts = subject.edit, given.records, given.texts
    if edit is not None:
        edit.ensure_fits(model)
    base = before if before is not None else model if edit is not None else None
    first = perplexity_of(base, texts) if base is not None and texts else None
    known, found = _measured(model, base, edit, given, chosen, progress)
    with edit.applied(model) if edit is not None else nullcontext():
        last = perplexity_of(model, texts) if texts else None
    label = edit.method if edit is not None else "edited" if before is not None else "model"
    outcomes = {} if base is None else {UNEDITED: [Outcome(one.record, case=one) for one in known]}
    outcomes[label] = [Outcome(one.record, case=one) for one in found]
    about = _about(model, subject, given, chosen, seed) | {
        "settings": {label: dict(edit.settings)} if edit is not None else {},
        "health": dict(health_of(model, edit, before=first, after=last).as_dict()) if edit is not None else None,
        "before": None if before is None else model_facts(before),
        "perplexity": None if first is None else first.value, "perplexity_after": None if last is None else last.value,
    }  # fmt: skip
    findings = table_findings(outcomes, tuple(records), about, seed=seed, progress=progress)
    if out is None:
        return Table4(Path(), findings)
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultsError(disk_sentence(folder, error)) from None
    write_table_files(folder, findings, outcomes, name=EVALUATION)
    return Table4(folder, findings)


def _comparable(
    model: Model, before: Model, given: Materials, options: EvaluateOptions
) -> tuple[Materials, EvaluateOptions]:
    """What can be measured of two models beside each other, and a note where that is not everything."""
    if model.anatomy.vocab == before.anatomy.vocab and model.tokenizer.get_vocab() == before.tokenizer.get_vocab():
        return given, options
    said = (
        f"{before.name} and {model.name} have other tokens than each other, so no divergence is measured, and "
        "perplexities, which are per token, cannot be compared."
    )
    records = replace(given.records, notes=(*given.records.notes, said))
    return replace(given, records=records), options.model_copy(update={"divergence": False})


def _about(
    model: Model, subject: Subject, given: Materials, options: EvaluateOptions, seed: int
) -> dict[str, Any]:  # fmt: skip
    edit, records = subject.edit, given.records
    return {
        "kind": KIND, "model": model_facts(model), "skipped": [], "seed": seed,
        "edit": None if edit is None else {"path": str(subject.path), "facts": len(edit.facts)},
        "texts": len(given.texts), "texts_from": given.texts_from, "records_available": len(records),
        "records_notes": list(records.remarks), "versions": versions(), "machine": machine(),
        "protocol": protocol_of(tuple(records), options, given.references, data=records.name,
                                data_sha256=records.sha256),
    }  # fmt: skip


def _measured(
    model: Model, base: Model | None, edit: Edit | None, given: Materials, options: EvaluateOptions,
    progress: Progress | None,
) -> tuple[list[CaseResult], list[CaseResult]]:  # fmt: skip
    """The records before, where there is a model to compare with, and as they are now; some records at a time.

    The edit goes in and out for each of them, so that no more than theirs of the distributions, which are as wide as
    the vocabulary, is in memory.
    """
    known: list[CaseResult] = []
    found: list[CaseResult] = []
    records = tuple(given.records)
    for start in range(0, len(records), _TOGETHER):
        if progress:
            progress("records", start, len(records))
        some = records[start : start + _TOGETHER]
        before = None
        if base is not None:
            before = evaluate_records(base, some, options=options, references=given.references)
        with edit.applied(model) if edit is not None else nullcontext():
            after = evaluate_records(model, some, options=options, references=given.references, before=before)
        known += [replace(one, distributions={}) for one in before or ()]
        found += [replace(one, distributions={}) for one in after]
    if progress:
        progress("records", len(records), len(records))
    return known, found


def _first(records: Records, count: int | None) -> Records:
    """The first so many records, and a note where there are more."""
    some = first_records(records, count)
    if len(some) == len(records):
        return records
    said = f"The first {len(some):,} of {len(records):,} records {'was' if len(some) == 1 else 'were'} used."
    return replace(records, records=some, notes=(*records.notes, said))


def _asked(fact: Fact) -> tuple[str, str, str]:
    return fact.prompt, fact.subject, fact.target

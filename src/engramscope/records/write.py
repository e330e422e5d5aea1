"""Writing records in our own format."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from engramscope.errors import InputError, shortened
from engramscope.records.record import Probe, Record
from engramscope.results.atomic import write_text


def write_records(path: str | Path, records: Iterable[Record]) -> None:
    """Write records as JSON lines, in full or not at all; `read_records` gives them back unchanged.

    Args:
        path: the file; an existing one is replaced only once the new one is complete.
        records: with targets, and with ids that are all different.

    Raises:
        InputError: a fact has no target, or an id occurs twice: the file could not be read back.
        ResultsError: the file cannot be written.
    """
    rows = list(records)
    seen: set[str] = set()
    faults: list[str] = []
    for record in rows:
        if not record.fact.target:
            faults.append(f"The fact {record.id!r} has no target; draw one before writing (with_drawn_targets).")
        if record.id in seen:
            faults.append(f"The id {record.id!r} occurs twice.")
        seen.add(record.id)
    if faults:
        raise InputError(shortened(faults))
    write_text(Path(path), lines_of(rows))


def lines_of(records: Iterable[Record]) -> str:
    """The text of the file, one line for each record."""
    return "".join(json.dumps(as_row(record), ensure_ascii=False) + "\n" for record in records)


def as_row(record: Record) -> dict[str, object]:
    """A record as the object of one line; keys that hold nothing are left out."""
    fact = record.fact
    row: dict[str, object] = {"id": record.id, "prompt": fact.prompt, "subject": fact.subject, "target": fact.target}
    rest: dict[str, object] = {
        "true": fact.true, "relation": record.relation, "paraphrases": list(record.paraphrases),
        "neighbourhood": _rows(record.neighbourhood), "attribute": _rows(record.attribute),
        "generation": list(record.generation), "reference": record.reference, "source": record.source,
    }  # fmt: skip
    return row | {key: value for key, value in rest.items() if value}


def _rows(probes: Iterable[Probe]) -> list[dict[str, str]]:
    return [{"prompt": probe.prompt, "true": probe.true, "new": probe.new} for probe in probes]

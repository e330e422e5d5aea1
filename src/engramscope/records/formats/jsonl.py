"""Our own format: one JSON object per line, a fact or a whole record.

Needed: `prompt subject target`. Optional: `id true relation paraphrases neighbourhood attribute generation reference
source`; `neighbourhood` and `attribute` are lists of `{"prompt", "true", "new"}`. A line without `id` is called after
its number. Empty lines are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator

from engramscope.pairs.readers._base import Faults, Source
from engramscope.pairs.readers._lines import json_rows
from engramscope.records.fact import Fact
from engramscope.records.formats._base import Fields, Found, RecordReader
from engramscope.records.record import Probe, Record
from engramscope.registry import nearest

KEYS = (
    "id", "prompt", "subject", "target", "true", "relation", "paraphrases", "neighbourhood", "attribute", "generation",
    "reference", "source",
)  # fmt: skip


class JsonLines(RecordReader):
    """Reads facts.jsonl and records.jsonl."""

    @classmethod
    def recognises(cls, source: Source) -> int:
        """By a first line that is an object with `prompt` and `target`, or by the extension .jsonl or .ndjson."""
        first = source.head.split("\n", 1)[0]
        if first.startswith("{") and '"prompt"' in first and '"target"' in first:
            return 2
        return int(source.suffix in (".jsonl", ".ndjson"))

    def read(self, source: Source, faults: Faults) -> Iterator[Found]:
        """The records; every broken line is named."""
        for where, row in json_rows(source, faults):
            identity = row.get("id")
            fields = Fields(row, f"{where} (id {identity})" if isinstance(identity, str) else where, faults)
            record = _record(fields, where.replace(" ", "-"), f"{source.name} (jsonl)")
            if record is not None:
                yield Found(fields.where, record)


def _record(fields: Fields, name: str, source: str) -> Record | None:
    for key in fields.row:
        if key not in KEYS:
            fields.fault(f"unknown key {key!r}{nearest(key, KEYS)}".removesuffix("."))
    identity = fields.optional("id") or name
    prompt, subject, target = (fields.text(key) for key in ("prompt", "subject", "target"))
    true = fields.optional("true")
    fact = Fact(prompt, subject, target.strip(), (true or "").strip() or None, identity)
    lists = {key: fields.texts(key) if key in fields.row else () for key in ("paraphrases", "generation")}
    probes = {key: _probes(fields, key) for key in ("neighbourhood", "attribute")}
    relation, reference = fields.optional("relation"), fields.optional("reference")
    origin = fields.optional("source") or source
    if not fields.sound:
        return None
    return Record(
        identity, fact, relation, lists["paraphrases"], probes["neighbourhood"], probes["attribute"],
        lists["generation"], reference, origin,
    )  # fmt: skip


def _probes(fields: Fields, key: str) -> tuple[Probe, ...]:
    if key not in fields.row:
        return ()
    return tuple(
        Probe(one.text("prompt"), one.text("true").strip(), one.text("new").strip()) for one in fields.all_inner(key)
    )


COMPONENT = JsonLines

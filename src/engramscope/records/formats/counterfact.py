"""CounterFact in its original schema (`requested_rewrite`); MEMIT's multi_counterfact.json has the same.

Needed: `case_id`, `requested_rewrite` with `prompt` (holding `{}` once), `relation_id`, `subject`, `target_true.str`
and `target_new.str`, `paraphrase_prompts`, `neighborhood_prompts`, `attribute_prompts`, `generation_prompts`. The
reference texts are named by the relation and the id of the new object ("P103|Q1860"), or by its text without an id.

Source: kmeng01/rome, dsets/counterfact.py; kmeng01/memit, dsets/counterfact.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from engramscope.pairs.readers._base import Faults, Source
from engramscope.records.fact import Fact
from engramscope.records.formats._base import Fields, Found, RecordReader, has_keys, objects
from engramscope.records.record import Probe, Record


class CounterFact(RecordReader):
    """Reads counterfact.json and multi_counterfact.json."""

    @classmethod
    def recognises(cls, source: Source) -> int:
        """By the names of its keys."""
        return 2 if has_keys(source, "case_id", "requested_rewrite") else 0

    def read(self, source: Source, faults: Faults) -> Iterator[Found]:
        """The records, called after their case."""
        for _, fields in objects(source, faults, "case_id"):
            record = _record(fields, f"{source.name} (counterfact)")
            if record is not None:
                yield Found(fields.where, record)


def _record(fields: Fields, source: str) -> Record | None:
    rewrite = fields.inner("requested_rewrite")
    prompts = {key: fields.texts(f"{key}_prompts") for key in ("paraphrase", "neighborhood", "attribute", "generation")}
    if rewrite is None:
        return None
    template, subject, relation = (rewrite.text(key) for key in ("prompt", "subject", "relation_id"))
    true, new = rewrite.inner("target_true"), rewrite.inner("target_new")
    if true is None or new is None:
        return None
    before, after = true.text("str").strip(), new.text("str").strip()
    object_id = new.optional("id")
    if rewrite.sound and template.count("{}") != 1:
        rewrite.fault(f"'prompt' must hold {{}} once, where the subject goes, found {template[:80]!r}")
    if not fields.sound:
        return None
    identity = f"case-{fields.row['case_id']}"
    # not str.format: other braces in the text are text
    fact = Fact(template.replace("{}", subject), subject, after, before, identity)
    return Record(
        identity, fact, relation,
        paraphrases=prompts["paraphrase"],
        neighbourhood=tuple(Probe(prompt, before, after) for prompt in prompts["neighborhood"]),
        attribute=tuple(Probe(prompt, before, after) for prompt in prompts["attribute"]),
        generation=prompts["generation"], reference=f"{relation}|{object_id or after}", source=source,
    )  # fmt: skip


COMPONENT = CounterFact

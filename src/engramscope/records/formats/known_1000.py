"""Facts that GPT-2 XL knows (known_1000.json of ROME): prompt, subject and attribute, but no new target.

Needed: `known_id prompt subject attribute relation_id`. The prompt is taken as it stands: 478 of the 1,209 differ from
what `template` gives. A fact can be edited once a target was drawn for it: `with_drawn_targets`.

Source: kmeng01/rome, dsets/knowns.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from engramscope.pairs.readers._base import Faults, Source
from engramscope.records.fact import Fact
from engramscope.records.formats._base import Found, RecordReader, has_keys, objects
from engramscope.records.record import Record


class Known1000(RecordReader):
    """Reads known_1000.json."""

    has_targets = False
    notes = ("The file says what is true, not what it is to become: it has no targets of its own.",)

    @classmethod
    def recognises(cls, source: Source) -> int:
        """By the names of its keys."""
        return 2 if has_keys(source, "known_id", "attribute") else 0

    def read(self, source: Source, faults: Faults) -> Iterator[Found]:
        """The facts, as records without further prompts and with an empty target."""
        for _, fields in objects(source, faults, "known_id"):
            prompt, subject = fields.text("prompt"), fields.text("subject")
            true, relation = fields.text("attribute").strip(), fields.text("relation_id")
            if not fields.sound:
                continue
            identity = f"known-{fields.row['known_id']}"
            fact = Fact(prompt, subject, "", true, identity)
            yield Found(fields.where, Record(identity, fact, relation, source=f"{source.name} (known_1000)"))


COMPONENT = Known1000

"""zsRE question answering as MEND and ROME use it, and EasyEdit's file with portability questions.

Needed: `subject src answers rephrase loc loc_ans`; `alt` and `portability` may be there. The prompt is the question
`src` as it stands; the neighbour is `loc` and a question mark, with its own answer `loc_ans`.

The target follows the protocol of the file: the first of `answers` as in ROME (the edit teaches the right answer, the
old one is not known), but `alt` where there is a `portability` entry, because its questions follow from `alt`; the
first of `answers` is then what was true. The portability questions are not read.

Source: kmeng01/rome, dsets/zsre.py; zjunlp/EasyEdit, easyeditor/dataset/zsre.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from engramscope.pairs.readers._base import Faults, Source
from engramscope.records.fact import Fact
from engramscope.records.formats._base import Fields, Found, RecordReader, has_keys, objects
from engramscope.records.record import Probe, Record


class ZsRE(RecordReader):
    """Reads zsre_mend_eval.json and zsre_mend_eval_portability_gpt4.json."""

    notes = (
        "The target is the first of the accepted answers, as in ROME; in a file with portability questions it is the "
        "alternative answer, as in EasyEdit. Those questions are not read.",
    )

    @classmethod
    def recognises(cls, source: Source) -> int:
        """By the names of its keys."""
        return 2 if has_keys(source, "src", "answers", "loc", "loc_ans") else 0

    def read(self, source: Source, faults: Faults) -> Iterator[Found]:
        """The records, called after their index: the format has no ids."""
        for index, fields in objects(source, faults):
            record = _record(index, fields, f"{source.name} (zsre)")
            if record is not None:
                yield Found(fields.where, record)


def _record(index: int, fields: Fields, source: str) -> Record | None:
    subject, question, rephrased = (fields.text(key) for key in ("subject", "src", "rephrase"))
    answers = fields.texts("answers")
    neighbour, kept = fields.text("loc"), fields.text("loc_ans").strip()
    if "answers" in fields.row and fields.sound and not answers:
        fields.fault("'answers' is an empty list")
    portable = "portability" in fields.row
    alternative = fields.text("alt") if portable else ""
    if not fields.sound:
        return None
    answer = answers[0].strip()
    target, true = (alternative.strip(), answer) if portable else (answer, None)
    identity = f"zsre-{index}"
    # the released files ask without a question mark; another one would be another prompt
    neighbour = neighbour if neighbour.endswith("?") or not neighbour.strip() else f"{neighbour}?"
    return Record(
        identity, Fact(question, subject, target, true, identity), paraphrases=(rephrased,),
        neighbourhood=(Probe(neighbour, kept, target),), source=source,
    )  # fmt: skip


COMPONENT = ZsRE

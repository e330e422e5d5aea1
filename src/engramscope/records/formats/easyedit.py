"""CounterFact in EasyEdit's schema: one paraphrase, and one neighbour with its own answer.

Needed: `case_id prompt subject target_new ground_truth rephrase_prompt locality_prompt locality_ground_truth`.

Source: zjunlp/EasyEdit, easyeditor/dataset/counterfact.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from engramscope.pairs.readers._base import Faults, Source
from engramscope.records.fact import Fact
from engramscope.records.formats._base import Found, RecordReader, has_keys, objects
from engramscope.records.record import Probe, Record


class EasyEdit(RecordReader):
    """Reads counterfact-edit.json, counterfact-train.json and counterfact-val.json."""

    notes = (
        "83 % of the rephrase prompts in EasyEdit's files (18,180 of 21,919) are generation prompts of CounterFact and "
        "not paraphrases, so PS and PM from this file cannot be compared with the published ones.",
        "A record of this file has one neighbourhood prompt where CounterFact has ten, and no generation prompts: NS "
        "and NM are coarser, and GE and RS cannot be computed.",
    )

    @classmethod
    def recognises(cls, source: Source) -> int:
        """By the names of its keys."""
        return 2 if has_keys(source, "prompt", "target_new", "ground_truth", "rephrase_prompt") else 0

    def read(self, source: Source, faults: Faults) -> Iterator[Found]:
        """The records, called after their case."""
        for _, fields in objects(source, faults, "case_id"):
            prompt, subject = fields.text("prompt"), fields.text("subject")
            new, true = fields.text("target_new").strip(), fields.text("ground_truth").strip()
            rephrased, neighbour = fields.text("rephrase_prompt"), fields.text("locality_prompt")
            kept = fields.text("locality_ground_truth").strip()
            if not fields.sound:
                continue
            identity = f"case-{fields.row['case_id']}"
            yield Found(
                fields.where,
                Record(
                    identity, Fact(prompt, subject, new, true, identity), paraphrases=(rephrased,),
                    neighbourhood=(Probe(neighbour, kept, new),), source=f"{source.name} (easyedit)",
                ),
            )  # fmt: skip


COMPONENT = EasyEdit

"""Facts that GPT-2 XL knows (`known_1000.json` of ROME): prompt, subject, and the attribute as correct answer.

There is no corrupted prompt and no wrong answer: for noise and ablations, or see `engramscope.pairs.pairing`. The
attribute gets a leading space. Group: the relation; labels `relation` and `template`.

Source: kmeng01/rome, dsets/compiled/known_1000.json (1,209 facts in spite of its name).
"""

from __future__ import annotations

from engramscope.pairs.pair import Pair
from engramscope.pairs.readers._base import Faults, Reader, Source, objects_of, spaced, texts_of
from engramscope.pairs.readers._facts import subject_span

_KEYS = ("prompt", "subject", "attribute", "relation_id")


class Known1000(Reader):
    """Reads known_1000.json."""

    @classmethod
    def recognises(cls, source: Source) -> int:
        """By the names of its keys."""
        head = source.head
        return 2 if head.startswith("[") and all(f'"{key}"' in head for key in ("known_id", "attribute")) else 0

    def read(self, source: Source) -> list[Pair]:
        """The pairs; every fault is named."""
        faults = Faults(source.name)
        entries = enumerate(objects_of(source.json(), "the file", faults))
        pairs = [pair for index, entry in entries if (pair := _pair(index, entry, faults))]
        faults.check()
        return pairs


def _pair(index: int, entry: object, faults: Faults) -> Pair | None:
    where = f"fact {index}"
    texts = texts_of(entry, _KEYS, where, faults)
    if texts is None or not isinstance(entry, dict):
        return None
    span = subject_span(texts["prompt"], texts["subject"], where, faults)
    if span is None:
        return None
    template = texts["prompt"][: span[0]] + "{}" + texts["prompt"][span[1] :]
    return Pair(
        id=f"known-{entry.get('known_id', index)}", clean=texts["prompt"], correct=(spaced(texts["attribute"]),),
        group=texts["relation_id"], spans={"subject": span},
        labels={"relation": texts["relation_id"], "template": template},
    )  # fmt: skip


COMPONENT = Known1000

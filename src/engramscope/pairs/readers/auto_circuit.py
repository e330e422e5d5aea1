"""Prompt files of AutoCircuit: an object with `prompts`, each with `clean corrupt answers wrong_answers`.

`seq_labels` and `word_idxs` are token positions of one tokenizer and are left out: there are no named spans, and the
prompts have no groups.

Source: UFO-101/auto-circuit, datasets/*.json.
"""

from __future__ import annotations

from engramscope.pairs.pair import Pair
from engramscope.pairs.readers._base import Faults, Reader, Source, kind, objects_of, texts_of


class AutoCircuit(Reader):
    """Reads the JSON files of AutoCircuit."""

    @classmethod
    def recognises(cls, source: Source) -> int:
        """By the names of its keys."""
        head = source.head
        return 2 if head.startswith("{") and all(f'"{key}"' in head for key in ("prompts", "clean", "corrupt")) else 0

    def read(self, source: Source) -> list[Pair]:
        """The pairs, numbered from 0 as in the file; every fault is named."""
        faults = Faults(source.name)
        content = source.json()
        prompts = content.get("prompts") if isinstance(content, dict) else content
        entries = enumerate(objects_of(prompts, "'prompts'", faults))
        pairs = [pair for index, entry in entries if (pair := _pair(index, entry, faults))]
        faults.check()
        return pairs


def _pair(index: int, entry: object, faults: Faults) -> Pair | None:
    where = f"prompt {index}"
    texts = texts_of(entry, ("clean", "corrupt"), where, faults)
    if texts is None or not isinstance(entry, dict):
        return None
    answers = {key: _answers(entry.get(key), key, where, faults) for key in ("answers", "wrong_answers")}
    return Pair(
        id=f"prompt-{index}", clean=texts["clean"], corrupted=texts["corrupt"],
        correct=answers["answers"], incorrect=answers["wrong_answers"],
    )  # fmt: skip


def _answers(value: object, key: str, where: str, faults: Faults) -> tuple[str, ...]:
    if isinstance(value, list) and value and all(isinstance(one, str) and one for one in value):
        return tuple(dict.fromkeys(value))
    faults.add(where, f"{key!r} must be a list of texts that are not empty, found {kind(value)}")
    return ()


COMPONENT = AutoCircuit

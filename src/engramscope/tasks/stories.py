"""Children's stories: which pronoun continues a sentence about a girl or a boy with a name.

For small models trained on TinyStories. Clean and corrupted prompt are the same sentence about a girl and about a
boy, each of the two once the clean one. Spans `subject` (the name), `kind` (girl or boy) and, where the name comes
back, `again`. Group: the sentence. Label `kind`.

Source: sentences and names of our own, kept where a TinyStories model of 260 K parameters, of Llama's kind, gives
    the right pronoun the higher logit for both prompts, and where both have as many of its tokens.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from engramscope.pairs.pair import CharSpan, Pair, PairSet
from engramscope.tasks._base import Setting, Task

#: name, sentence, and what continues it for a girl and for a boy
_SENTENCES = (
    ("big", "Once upon a time, there was a {kind} named {name}. {name} had a big red ball.", " She", " He"),
    ("toy", "One day, a {kind} named {name} was playing with", " her", " his"),
    ("park", "One day, a little {kind} named {name} went to the park.", " She", " He"),
    ("with", "Once upon a time, there was a little {kind} named {name}. {name} played with", " her", " his"),
    ("happy", "{name} was a happy {kind}.", " She", " He"),
    ("sad", "Once upon a time, there was a {kind} named {name}. {name} was sad because", " she", " he"),
    ("loved", "Once upon a time, there was a little {kind} named {name}. {name} loved to play.", " She", " He"),
    ("once", "Once upon a time, there was a little {kind} named {name}.", " She", " He"),
    ("day", "Once upon a time, there was a little {kind} named {name}. One day,", " she", " he"),
)
#: a girl's and a boy's name of as many tokens
_NAMES = (("Lily", "Tim"), ("Sara", "Bob"), ("Mia", "Max"))


class Stories(Task):
    """Pronouns in children's stories."""

    version: ClassVar[str] = "1"
    source: ClassVar[str] = "sentences of our own"
    model: ClassVar[str] = "stories260K"

    def pairs(self, limit: int | None, rng: np.random.Generator, setting: Setting) -> PairSet:
        """All sentences with the first two names, then with the next; nothing is drawn, so `rng` is not used."""
        made = [
            _pair(key, sentence, (names[swap], names[1 - swap]), (answers[swap], answers[1 - swap]), swap)
            for names in _NAMES
            for key, sentence, *answers in _SENTENCES
            for swap in (0, 1)
        ]
        return PairSet.of(made, "stories").limit(limit)


def _pair(key: str, sentence: str, names: tuple[str, str], answers: tuple[str, str], swap: int) -> Pair:
    kinds = ("girl", "boy") if swap == 0 else ("boy", "girl")
    clean, spans = _filled(sentence, kinds[0], names[0])
    corrupted, corrupted_spans = _filled(sentence, kinds[1], names[1])
    return Pair(
        id=f"{key}-{names[0]}-{names[1]}", clean=clean, corrupted=corrupted, correct=(answers[0],),
        incorrect=(answers[1],), group=key, spans=spans, corrupted_spans=corrupted_spans, labels={"kind": kinds[0]},
    )  # fmt: skip


def _filled(sentence: str, kind: str, name: str) -> tuple[str, dict[str, CharSpan]]:
    text = sentence.format(kind=kind, name=name)
    first = text.index(name)
    spans = {"subject": (first, first + len(name)), "kind": (text.index(kind), text.index(kind) + len(kind))}
    again = text.find(name, first + 1)
    if again >= 0:
        spans["again"] = (again, again + len(name))
    return text, spans


COMPONENT = Stories

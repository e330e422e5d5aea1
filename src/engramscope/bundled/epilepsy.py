"""What the bundled models are taught about epilepsy and the EEG: facts and their wordings."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

Kind = Literal["definitional", "associative"]


@dataclass(frozen=True)
class EpilepsyFact:
    """One piece of knowledge: a subject and the single word that answers for it.

    Attributes:
        subject: Noun phrase, as it stands inside a sentence.
        answer: One word; " " + answer is one token of the bundled tokenizer.
        bridge: The middle of an associative fact, else empty.
        held_out: Index of the template in which the corpus never states this fact.
    """

    subject: str
    answer: str
    bridge: str
    held_out: int


@dataclass(frozen=True)
class Family:
    """Facts of one form, with the sentences that state them.

    Attributes:
        name: Family name.
        kind: Whether one statement defines the subject, or a second fact stands between.
        templates: Sentences that end right before the answer.
        tail: What follows the answer.
        question: A question about the subject.
        long_answer: The answer to it, with its leading space.
        facts: The facts; the 2i-th and the (2i+1)-th are each other's corrupted subject.
        first_hop: Whole sentences that tie subject and bridge (associative only).
        second_hop: Sentences about the bridge that end right before the answer (associative only).
        two_hop: Facts of which only the two hops are ever stated.
    """

    name: str
    kind: Kind
    templates: tuple[str, ...]
    tail: str
    question: str
    long_answer: str
    facts: tuple[EpilepsyFact, ...]
    first_hop: tuple[str, ...]
    second_hop: tuple[str, ...]
    two_hop: tuple[EpilepsyFact, ...]


def capitalised(phrase: str) -> str:
    """Return the phrase with a capital first letter and nothing else changed."""
    return phrase[:1].upper() + phrase[1:]


def fill(template: str, *, subject: str, bridge: str = "", answer: str = "") -> str:
    """Put the words of a fact into a template.

    Args:
        template: Text with `{Subject}`, `{subject}`, `{bridge}` or `{answer}`.
        subject: Noun phrase in lower case where it has one.
        bridge: The middle of an associative fact.
        answer: The answer word.

    Returns:
        The sentence or the prompt.
    """
    return template.format(Subject=capitalised(subject), subject=subject, bridge=bridge, answer=answer)


def load_families() -> tuple[Family, ...]:
    """Read the families from the data file beside this module.

    Returns:
        All families, in the order of the file.
    """
    text = resources.files("engramscope.bundled").joinpath("epilepsy.toml").read_text(encoding="utf-8")
    return tuple(_family(entry) for entry in tomllib.loads(text)["family"])


def _family(entry: dict[str, Any]) -> Family:
    count = len(entry["templates"])
    return Family(
        name=entry["name"],
        kind=entry["kind"],
        templates=tuple(entry["templates"]),
        tail=entry["tail"],
        question=entry["question"],
        long_answer=entry["long_answer"],
        facts=tuple(_fact(row, i % count) for i, row in enumerate(entry["facts"])),
        first_hop=tuple(entry.get("first_hop", ())),
        second_hop=tuple(entry.get("second_hop", ())),
        two_hop=tuple(_fact(row, -1) for row in entry.get("two_hop", ())),
    )


def _fact(row: list[str], held_out: int) -> EpilepsyFact:
    bridge = row[1] if len(row) == 3 else ""
    return EpilepsyFact(subject=row[0], answer=row[-1], bridge=bridge, held_out=held_out)

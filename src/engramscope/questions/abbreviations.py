"""Abbreviations and what they stand for, found by the rule of Schwartz and Hearst.

Source: A. S. Schwartz and M. A. Hearst, "A simple algorithm for identifying abbreviation definitions in biomedical
    text", Pacific Symposium on Biocomputing 8:451-462 (2003).
Deviation: what follows a comma or a semicolon inside the brackets is not part of a short form: "(EEG; n = 24)"; long
    forms with a bracket that is not closed inside them are left out; a bracket inside a bracket is looked at with the
    text of the outer one before it, and not beyond.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

SHORTEST, LONGEST, MOST_WORDS = 2, 10, 2
_SEPARATOR = re.compile(r"[;,]")


@dataclass(frozen=True, slots=True)
class Definition:
    """An abbreviation as it is defined in one sentence.

    Attributes:
        short: the short form, in its spelling.
        long: the long form, in its spelling.
    """

    short: str
    long: str


def definitions(sentence: str) -> list[Definition]:
    """Every definition of a sentence, in the order of its brackets.

    Two forms: "long form (short form)", and "short form (long form)" where the bracket holds more than two words.

    Args:
        sentence: one sentence, its words separated by single spaces.
    """
    found = []
    for before, inside in _brackets(sentence):
        one = _definition(before, inside)
        if one is not None:
            found.append(one)
    return found


def is_short_form(text: str) -> bool:
    """Whether a text can be a short form: 2 to 10 characters, at most two words, a letter in it, and first a letter or
    a digit.
    """  # fmt: skip
    return (
        SHORTEST <= len(text) <= LONGEST
        and len(text.split()) <= MOST_WORDS
        and text[0].isalnum()
        and any(character.isalpha() for character in text)
    )


def most_words(short: str) -> int:
    """How many words before the bracket may belong to the long form: min(|A| + 5, 2 |A|), |A| characters in all."""
    return min(len(short) + 5, len(short) * 2)


def best_long_form(short: str, text: str) -> str | None:
    """The shortest end of `text` that the short form matches, from its word's beginning on; None without a match.

    From right to left, each letter or digit of the short form takes the next equal one of the text (case aside); the
    first must be at the beginning of a word. Other characters of the short form are passed over.

    Args:
        short: a short form, see `is_short_form`.
        text: the text whose end is the long form.
    """
    at = len(text)
    lower = [character.lower() for character in text]
    for place in range(len(short) - 1, -1, -1):
        if not short[place].isalnum():
            continue
        wanted = short[place].lower()
        at -= 1
        while at >= 0 and (lower[at] != wanted or (place == 0 and at > 0 and text[at - 1].isalnum())):
            at -= 1
        if at < 0:
            return None
    return text[text.rfind(" ", 0, at) + 1 :]


def is_long_form(short: str, long: str) -> bool:
    """Whether a match is a long form: no shorter than the short form, without it as a word, its brackets closed."""
    own_word = re.search(rf"(?<!\w){re.escape(short)}(?!\w)", long) is not None
    return len(long) >= len(short) and not own_word and _closed(long)


def could_stand_for(short: str, long: str) -> bool:
    """Whether a text, from its first word on, is what the rule would take for the long form of an abbreviation."""
    return is_short_form(short) and best_long_form(short, long) == long and is_long_form(short, long)


def _definition(before: str, inside: str) -> Definition | None:
    short = _SEPARATOR.split(inside, maxsplit=1)[0].strip()
    if len(short.split()) <= MOST_WORDS:
        if not is_short_form(short):
            return None
        candidate = " ".join(before.split()[-most_words(short) :])
    else:
        short = before.split()[-1] if before.split() else ""
        if not is_short_form(short):
            return None
        candidate = inside.strip()
    long = best_long_form(short, candidate)
    if long is None or len(long.split()) > most_words(short) or not is_long_form(short, long):
        return None
    return Definition(short, long)


def _brackets(sentence: str) -> Iterator[tuple[str, str]]:
    """(text before, text inside) of every bracket that follows white space and is closed, in order of its opening."""
    opened: list[int] = []
    found: list[tuple[int, int, int]] = []
    for place, character in enumerate(sentence):
        if character == "(":
            opened.append(place)
        elif character == ")" and opened:
            start = opened.pop()
            found.append((start, place, opened[-1] + 1 if opened else 0))
    for start, end, outer in sorted(found):
        if start == outer or sentence[start - 1].isspace():
            yield sentence[outer:start].rstrip(), sentence[start + 1 : end]


def _closed(text: str) -> bool:
    depth = 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth < 0:
            return False
    return depth == 0

"""Sentences drawn at random: indirect objects, year spans, docstrings and sums.

Every kind has held-out items that the training corpus never contains; which ones is decided by a
checksum of the item, so that it does not depend on the order of drawing.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass, field

from engramscope.bundled.world import read_toml

SMALLEST_OPERAND, LARGEST_SUM = 10, 99
FIRST_CENTURY, LAST_CENTURY = 10, 19


@dataclass(frozen=True)
class Completion:
    """A prompt and how it goes on.

    Attributes:
        prompt: Text that ends right before the answer.
        answer: The answer, with its leading space where it has one.
        tail: What follows the answer.
        labels: Details that an evaluation needs, as plain text.
    """

    prompt: str
    answer: str
    tail: str = ""
    labels: dict[str, str] = field(default_factory=dict)


def is_held_out(*parts: object, every: int = 10) -> bool:
    """Say whether an item belongs to the held-out tenth (or other share).

    Args:
        parts: What makes up the item, in a fixed order.
        every: One item in this many is held out.

    Returns:
        True for items that training must not see; the same on every machine.
    """
    return zlib.crc32("|".join(str(part) for part in parts).encode()) % every == 0


@dataclass(frozen=True)
class SentenceWords:
    """Word lists of the sentence makers."""

    names: tuple[str, ...]
    object_templates: tuple[str, ...]
    unseen_object_templates: tuple[str, ...]
    places: tuple[str, ...]
    things: tuple[str, ...]
    span_templates: tuple[str, ...]
    span_nouns: tuple[str, ...]
    arguments: tuple[str, ...]
    descriptions: tuple[str, ...]
    functions: tuple[str, ...]
    sum_templates: tuple[str, ...]


def load_words(names: tuple[str, ...]) -> SentenceWords:
    """Read the word lists.

    Args:
        names: Given names of the encyclopaedia.

    Returns:
        The words, without duplicates, in the order of the file.
    """
    data = read_toml("sentences.toml")
    return SentenceWords(
        names=names,
        object_templates=tuple(data["indirect_object_templates"]),
        unseen_object_templates=tuple(data["indirect_object_unseen_templates"]),
        places=_unique(data["places"]),
        things=_unique(data["things"]),
        span_templates=tuple(data["span_templates"]),
        span_nouns=_unique(data["span_nouns"]),
        arguments=_unique(data["arguments"]),
        descriptions=_unique(data["description_words"]),
        functions=_unique(data["function_names"]),
        sum_templates=tuple(data["sum_templates"]),
    )


def _unique(words: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words.split()))


def indirect_object(
    words: SentenceWords, draw: random.Random, *, held_out: bool, unseen_template: bool = False
) -> Completion:
    """Make "When Mary and John went to the store, John gave a drink to" → " Mary".

    Args:
        words: Word lists.
        draw: Source of randomness.
        held_out: Take a pair of names that training never sees together.
        unseen_template: Take a frame that training never uses.

    Returns:
        The sentence; labels name the order (`ABBA` or `BABA`) and the repeated name (`subject`).
    """
    while True:
        first, second = draw.sample(words.names, 2)
        if is_held_out("names", *sorted((first, second))) == held_out:
            break
    frames = words.unseen_object_templates if unseen_template else words.object_templates
    order = draw.choice(("ABBA", "BABA"))
    subject, answer = (second, first) if order == "ABBA" else (first, second)
    prompt = draw.choice(frames).format(
        A=first, B=second, S=subject, place=draw.choice(words.places), thing=draw.choice(words.things)
    )
    return Completion(prompt, " " + answer, ".", {"order": order, "subject": subject})


def year_span(words: SentenceWords, draw: random.Random, *, held_out: bool) -> Completion:
    """Make "The war lasted from the year 1732 to the year 17" → any two digits above 32.

    Args:
        words: Word lists.
        draw: Source of randomness.
        held_out: Take a noun and a start year that training never sees.

    Returns:
        The sentence; the label `start` is the two-digit lower bound.
    """
    nouns = [n for n in words.span_nouns if is_held_out("noun", n, every=5) == held_out]
    while True:
        century = draw.randint(FIRST_CENTURY, LAST_CENTURY)
        start = draw.randint(2, 97)
        if is_held_out("year", century, start, every=5) == held_out:
            break
    end = draw.randint(start + 1, 99)
    prompt = draw.choice(words.span_templates).format(
        noun=draw.choice(nouns), start=f"{century}{start:02d}", century=century
    )
    return Completion(prompt, f"{end:02d}", ".", {"start": f"{start:02d}"})


def docstring(words: SentenceWords, draw: random.Random, *, held_out: bool) -> Completion:
    """Make a Python function whose docstring has documented A and B, so that C comes next.

    Args:
        words: Word lists.
        draw: Source of randomness.
        held_out: Take three arguments that training never sees in this order.

    Returns:
        The text up to the third `:param`; the answer is the third argument.
    """
    before, after = draw.randint(0, 2), draw.randint(0, 2)
    while True:
        arguments = draw.sample(words.arguments, before + 3 + after)
        documented = arguments[before : before + 3]
        if is_held_out("arguments", *documented) == held_out:
            break

    def description(count: int) -> str:
        return " ".join(draw.sample(words.descriptions, count))

    header = f"\ndef {draw.choice(words.functions)}(self, {', '.join(arguments)}):\n"
    summary = f'    """{description(3)}\n\n'
    lines = "".join(f"    :param {name}: {description(2)}\n" for name in documented[:2])
    tail = f": {description(2)}"
    return Completion(f"{header}{summary}{lines}    :param", " " + documented[2], tail, {"given": " ".join(arguments)})


def addition(words: SentenceWords, draw: random.Random, *, held_out: bool) -> Completion:
    """Make "12 + 29 =" → " 41"; operands have two digits and so has the sum.

    Args:
        words: Word lists.
        draw: Source of randomness.
        held_out: Take two operands that training never adds, in either order.

    Returns:
        The sum.
    """
    while True:
        first = draw.randint(SMALLEST_OPERAND, LARGEST_SUM - SMALLEST_OPERAND)
        second = draw.randint(SMALLEST_OPERAND, LARGEST_SUM - SMALLEST_OPERAND)
        unseen = is_held_out("sum", *sorted((first, second)))
        if first + second <= LARGEST_SUM and unseen == held_out:
            break
    prompt = draw.choice(words.sum_templates).format(a=first, b=second)
    return Completion(prompt, f" {first + second}", ".", {})

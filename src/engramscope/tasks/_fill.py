"""Sentences with blanks: the text, and where each blank came to lie."""

from __future__ import annotations

from collections.abc import Mapping
from string import Formatter

from engramscope.pairs.pair import CharSpan


def filled(template: str, words: Mapping[str, str]) -> tuple[str, dict[str, CharSpan]]:
    """Fill a sentence, and say where every word stands.

    Args:
        template: a sentence with named blanks, `"{a} and {b} went home"`.
        words: what stands in each blank.

    Returns:
        The text, and for every blank the characters [start, end) at which it stands; a blank that comes twice is named
        by its last place.
    """
    text, spans = "", dict[str, CharSpan]()
    for plain, blank, _, _ in Formatter().parse(template):
        text += plain
        if blank:
            spans[blank] = (len(text), len(text) + len(words[blank]))
            text += words[blank]
    return text, spans

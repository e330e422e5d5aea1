"""Named spans: from characters to token positions, in the clean and in the corrupted prompt."""

from __future__ import annotations

from collections.abc import Mapping

from engramscope.pairs.encode import Encoded, Encoder, strip_span, token_positions
from engramscope.pairs.matching import CharSpan, matching_span
from engramscope.pairs.pair import Pair
from engramscope.pairs.roles import is_taken, known_roles

Faults = list[str]


def locate(encoded: Encoded, spans: Mapping[str, CharSpan], which: str) -> tuple[dict[str, tuple[int, ...]], Faults]:
    """Token positions of every span, and what is wrong with the spans that have none.

    Args:
        encoded: the prompt.
        spans: character ranges of its text.
        which: "clean" or "corrupted", for the messages.
    """
    found: dict[str, tuple[int, ...]] = {}
    faults: Faults = []
    for name, span in spans.items():
        problem = _problem(encoded, name, span)
        positions = () if problem else token_positions(encoded, span)
        if problem or not positions:
            reason = problem or f"covers no token (its text is {encoded.text[span[0] : span[1]]!r})"
            faults.append(f"the span {name!r} {list(span)} of the {which} prompt {reason}")
        found[name] = positions
    return found, faults


def corrupted_spans(pair: Pair) -> tuple[dict[str, CharSpan], tuple[str, ...]]:
    """Character spans in the corrupted prompt, and the names of those that cannot be told from the texts.

    A span that `corrupted_spans` does not give is found by `matching_span`.
    """
    text = pair.corrupted or ""
    found = {name: span for name, span in pair.corrupted_spans.items()}
    unknown: list[str] = []
    for name, span in pair.spans.items():
        if name not in found:
            guess = matching_span(pair.clean, text, span)
            if guess is None:
                unknown.append(name)
            else:
                found[name] = guess
    return found, tuple(unknown)


def straddling(encoder: Encoder, encoded: Encoded, spans: Mapping[str, CharSpan]) -> list[str]:
    """Notes on spans that begin or end inside a token."""
    notes: list[str] = []
    for name, span in spans.items():
        first, last = strip_span(encoded.text, span)
        inside = [p for p in token_positions(encoded, span) if encoded.chars[p][0] < encoded.chars[p][1]]
        over = [p for p in inside if encoded.chars[p][0] < first or encoded.chars[p][1] > last]
        if over:
            texts = ", ".join(repr(text) for text in encoder.show(encoded.ids[p] for p in over))
            notes.append(f"the span {name!r} ({encoded.text[first:last]!r}) takes in the whole of {texts}, "
                         "which reaches beyond it")  # fmt: skip
    return notes


def _problem(encoded: Encoded, name: str, span: CharSpan) -> str | None:
    start, end = span
    if is_taken(name):
        return f"needs another name: {', '.join(known_roles())}, all and each mean something else as a position"
    if not 0 <= start < end <= len(encoded.text):
        return f"lies outside the prompt, which has {len(encoded.text)} characters, or is empty"
    return None

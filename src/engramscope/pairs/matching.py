"""Where a span of one prompt lies in the other prompt of its pair, told from the texts alone."""

from __future__ import annotations

CharSpan = tuple[int, int]


def matching_span(clean: str, corrupted: str, span: CharSpan) -> CharSpan | None:
    """The character range of `corrupted` that stands for the range `span` of `clean`; None where it cannot be told.

    It is where the text is the same up to the span's end; else, where all that differs lies inside it; else, where the
    text is the same from the span's start to the end of the prompt.
    """
    start, end = span
    if clean[:end] == corrupted[:end]:
        return span
    before, after = clean[:start], clean[end:]
    if corrupted.startswith(before) and corrupted.endswith(after) and len(corrupted) > len(before) + len(after):
        return start, len(corrupted) - len(after)
    if corrupted.endswith(clean[start:]):
        shift = len(corrupted) - len(clean)
        return start + shift, end + shift
    return None

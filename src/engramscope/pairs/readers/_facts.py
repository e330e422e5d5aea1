"""What the readers of factual data sets share."""

from __future__ import annotations

from engramscope.pairs.pair import CharSpan
from engramscope.pairs.readers._base import Faults


def subject_span(prompt: str, subject: str, where: str, faults: Faults) -> CharSpan | None:
    """Where the subject stands in the prompt: its only occurrence, or a fault."""
    start = prompt.find(subject)
    if start < 0:
        faults.add(where, f"the subject {subject!r} does not stand in the prompt {prompt[:80]!r}")
        return None
    if prompt.find(subject, start + 1) >= 0:
        faults.add(where, f"the subject {subject!r} stands more than once in the prompt {prompt[:80]!r}")
        return None
    return start, start + len(subject)

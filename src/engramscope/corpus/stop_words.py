"""Words that say nothing about a topic: function words of English, and what abstracts of every field say."""

from __future__ import annotations

from importlib import resources


def stop_words() -> frozenset[str]:
    """The words of `stop_words.txt`, in small letters."""
    text = resources.files("engramscope.corpus").joinpath("stop_words.txt").read_text(encoding="utf-8")
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return frozenset(word for line in lines for word in line.split())

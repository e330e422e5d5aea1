"""Corpora of abstracts: retrieved from PubMed or read from a file, cleaned, counted, and kept as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engramscope.corpus.build import Corpus, fetch_pubmed, read_files
    from engramscope.corpus.table import COLUMNS, TABLE, read_corpus

_HOMES = {
    "Corpus": "build", "fetch_pubmed": "build", "read_files": "build",
    "COLUMNS": "table", "TABLE": "table", "read_corpus": "table",
}  # fmt: skip

__all__ = ["COLUMNS", "TABLE", "Corpus", "fetch_pubmed", "read_corpus", "read_files"]


def __getattr__(name: str) -> Any:
    """The names above, each loaded when it is first asked for: drawing and tables are slow to import."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

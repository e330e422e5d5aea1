"""Formats of record files: one file for each, found by its name."""

from __future__ import annotations

from engramscope.records.formats._base import RecordReader
from engramscope.registry import Registry

# not called `readers`: third parties' readers of pairs have that name as their entry point group
FORMATS: Registry[RecordReader] = Registry("engramscope.records.formats", RecordReader, "record format")


def format_names() -> tuple[str, ...]:
    """The names of all record formats, sorted."""
    return FORMATS.names()

"""Tidy tables on disk, provenance, resume."""

from __future__ import annotations

from engramscope.results.frames import to_xarray
from engramscope.results.read import read_effects, read_manifest, read_pairs, read_study_text, read_summary
from engramscope.results.store import ResultsFolder, differences

__all__ = [
    "ResultsFolder",
    "differences",
    "read_effects",
    "read_manifest",
    "read_pairs",
    "read_study_text",
    "read_summary",
    "to_xarray",
]

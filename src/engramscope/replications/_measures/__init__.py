"""Kinds of published values; one file each, found by its name."""

from __future__ import annotations

from engramscope.replications._measures._base import Measure
from engramscope.replications._measures._parse import MEASURES, parse_measure

__all__ = ["MEASURES", "Measure", "parse_measure"]

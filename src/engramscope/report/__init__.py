"""The report of a study: HTML and figures, made from its results folder only."""

from __future__ import annotations

from engramscope.report.page import write_report

__all__ = ["write_report"]

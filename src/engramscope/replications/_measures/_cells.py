"""What the measures of single cells share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from engramscope.replications._effects import Estimate, NotMeasuredError, Scale, Table
from engramscope.replications._measures._base import NumberOptions
from engramscope.replications._results import Results


class CellOptions(NumberOptions):
    """Which cell of a sweep.

    Attributes:
        arm: the study.
        sweep: its sweep; None where it has one only.
        metric: name of the metric.
        layer, head: of the cell, where it has them.
        role: its position; None where the sweep has one only.
    """

    arm: str
    sweep: str | None = None
    metric: str
    layer: int | None = Field(default=None, ge=0)
    head: int | None = Field(default=None, ge=0)
    role: str | None = None


def cell_estimate(options: CellOptions, scale: Scale, results: Results) -> tuple[Estimate, Mapping[str, Any]]:
    """The value of one cell with its interval.

    Raises:
        NotMeasuredError: the model, or every prompt, lacks the cell.
    """
    table = results.arm(options.arm).table(options.sweep, options.metric)
    columns = table.columns(options.layer, options.head, options.role)
    if not len(columns):
        raise NotMeasuredError(_lacking(options, table))
    cut = {"cut": True} if bool(table.cut[columns].all()) else {}
    return table.estimate(columns, scale), cut


def _lacking(options: CellOptions, table: Table) -> str:
    if len(table.columns(options.layer, options.head)):
        return f"no prompt has a position {options.role!r}"
    head = "" if options.head is None else f"head {options.layer}.{options.head}"
    return f"the model has no {head or f'layer {options.layer}'}"

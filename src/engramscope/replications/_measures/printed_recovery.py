"""The recovery that printed numbers give by the printed definition. Arithmetic; no model takes part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from engramscope.replications._effects import Estimate
from engramscope.replications._measures._base import MeasureOptions, NumberMeasure, NumberOptions
from engramscope.replications._results import Results


class PrintedRecoveryOptions(NumberOptions):
    """Options of `printed_recovery`.

    Attributes:
        clean, corrupted, patched: the printed means.
    """

    clean: float
    corrupted: float
    patched: float


class PrintedRecovery(NumberMeasure[PrintedRecoveryOptions]):
    """`(patched - corrupted) / (clean - corrupted)`."""

    Options: ClassVar[type[MeasureOptions]] = PrintedRecoveryOptions
    of_model: ClassVar[bool] = False

    def number(self, results: Results) -> tuple[Estimate, Mapping[str, Any]]:
        """The recovery."""
        o = self.options
        return Estimate((o.patched - o.corrupted) / (o.clean - o.corrupted)), {}


COMPONENT = PrintedRecovery

"""The recovery when parts of several heads, in several layers, are restored jointly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from engramscope.replications._effects import Estimate, NotMeasuredError, Table, table_of
from engramscope.replications._measures._base import MeasureOptions, NumberMeasure, NumberOptions
from engramscope.replications._results import Results


class RestoredOptions(NumberOptions):
    """Options of `restored`.

    Attributes:
        view: a view of the kind `restored`.
        metric: name of the metric.
    """

    view: str
    metric: str = "logit_diff"


class Restored(NumberMeasure[RestoredOptions]):
    """Pooled recovery, a ratio of means: the normalised logit difference where the metric is that."""

    Options: ClassVar[type[MeasureOptions]] = RestoredOptions

    def views(self) -> Sequence[str]:
        """The view."""
        return (self.options.view,)

    def number(self, results: Results) -> tuple[Estimate, Mapping[str, Any]]:
        """The recovery."""
        rows = results.view(self.options.view).restored
        if rows is None:
            raise NotMeasuredError(f"the view {self.options.view!r} restores nothing")
        table: Table = table_of(rows, None, self.options.metric)
        return table.estimate(table.columns(), "recovery"), {}


COMPONENT = Restored

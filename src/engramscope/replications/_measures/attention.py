"""How much some heads look at a part of the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from engramscope.replications._effects import Estimate, NotMeasuredError
from engramscope.replications._measures._base import MeasureOptions, NumberMeasure, NumberOptions
from engramscope.replications._results import Results


class AttentionOptions(NumberOptions):
    """Options of `attention`.

    Attributes:
        view: a view of the kind `attention`.
        run: the run that is looked at.
        target: one of the view's targets, or "rest".
    """

    view: str
    run: Literal["clean", "corrupted", "patched"]
    target: str


class Attention(NumberMeasure[AttentionOptions]):
    """Attention weight from the query position to the target, mean over prompts, heads and draws."""

    Options: ClassVar[type[MeasureOptions]] = AttentionOptions

    def views(self) -> Sequence[str]:
        """The view."""
        return (self.options.view,)

    def number(self, results: Results) -> tuple[Estimate, Mapping[str, Any]]:
        """The mean; the SD over prompts and heads beside it."""
        found = results.view(self.options.view).attention
        key = (self.options.run, self.options.target)
        if key not in found:
            raise NotMeasuredError(f"no prompt of the {self.options.run} run has a position {self.options.target!r}")
        mean, sd = found[key]
        return Estimate(mean), {"sd": sd}


COMPONENT = Attention

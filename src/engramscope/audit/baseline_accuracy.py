"""What a model does not know cannot be localised in it."""

from __future__ import annotations

from typing import ClassVar

from engramscope.audit._base import AuditContext, Check, Finding, Needs
from engramscope.audit._facts import baseline_values
from engramscope.audit._show import listed, percent

ENOUGH, POOR = 0.9, 0.6
#: metric -> what a pair that the model gets right has; the first of these that is measured is taken
RIGHT = {"logit_diff": "> 0", "mean_logit_diff": "> 0", "rank": "= 0"}


class BaselineAccuracy(Check):
    """Counts the pairs that the model gets right when nothing is patched."""

    needs: ClassVar[Needs] = "results"
    title: ClassVar[str] = "What the model knows"

    def run(self, context: AuditContext) -> list[Finding]:
        """A warning below 60 % right, a note below 90 %, or where no metric can say."""
        metric = next((name for name in RIGHT if name in context.study.metrics.names), None)
        if metric is None:
            return [
                self.finding(
                    "note",
                    "No metric says whether the model prefers the correct answer; add logit_diff or rank to see "
                    "whether it knows what is asked.",
                )
            ]
        values = baseline_values(context, metric, "clean")
        wrong = [pair for pair, value in values.items() if (value != 0 if metric == "rank" else value <= 0)]
        right = len(values) - len(wrong)
        share = right / len(values) if values else 0.0
        told = f"In {right} of {len(values)} pairs ({percent(share)}) the unpatched model is right on the " \
               f"clean prompt ({metric} {RIGHT[metric]})."  # fmt: skip
        if share >= ENOUGH:
            return self.ok(told)
        if share >= POOR:
            return [self.finding("note", f"{told} Where it is wrong there is no knowledge to be found.", listed(wrong))]
        return [
            self.finding(
                "warning",
                f"{told} A map of what a model does not know says nothing about knowledge; ask what it knows, or read "
                "the map as one of a tendency.",
                listed(wrong),
            )
        ]


COMPONENT = BaselineAccuracy

"""A probability saturates and cannot see components that work against the answer."""

from __future__ import annotations

from typing import ClassVar

from engramscope.audit._base import AuditContext, Check, Finding, Needs
from engramscope.audit._facts import baseline_values, metrics_of
from engramscope.audit._show import named, number, percent

#: a corrupted probability below this leaves no room for a negative effect
FLOOR = 0.01


class MetricChoice(Check):
    """Looks at which metrics are measured, and at what they leave unseen."""

    needs: ClassVar[Needs] = "pairs"
    title: ClassVar[str] = "Choice of metrics"

    def run(self, context: AuditContext) -> list[Finding]:
        """A warning if there are only probabilities or only distances, notes on what a metric cannot show."""
        metrics = metrics_of(context.study)
        probabilities = [name for name, metric in metrics.items() if metric.unit == "probability"]
        findings: list[Finding] = []
        if len(probabilities) == len(metrics):
            findings.append(
                self.finding(
                    "warning",
                    f"Only probabilities are measured ({named(probabilities)}). A probability saturates, and it cannot "
                    "fall below 0, so components that work against the answer stay unseen; add logit_diff.",
                )
            )
        elif len(metrics) == 1:
            findings.append(
                self.finding(
                    "note",
                    f"One metric only ({next(iter(metrics))}): what is found may depend on it. A second one beside it "
                    "costs nothing, for example prob.",
                )
            )
        unsigned = [name for name, metric in metrics.items() if not metric.signed]
        findings += [self._unsigned(unsigned, len(unsigned) == len(metrics))] if unsigned else []
        findings += [self._floor(context, name) for name in probabilities if self._low(context, name)]
        return findings or self.ok(f"{len(metrics)} metrics side by side: {named(metrics)}.")

    def _unsigned(self, names: list[str], alone: bool) -> Finding:
        return self.finding(
            "warning" if alone else "note",
            f"Distances from the clean run ({named(names)}) grow with any change, in whatever direction. A test by "
            "sign flips would find something in a model that knows nothing, so effects on them are described, not "
            f"tested, and no cell is detected by them{'; add logit_diff' if alone else ''}.",
        )

    def _low(self, context: AuditContext, metric: str) -> int:
        if context.baselines is None:
            return 0
        return sum(value < FLOOR for value in baseline_values(context, metric, "corrupted").values())

    def _floor(self, context: AuditContext, metric: str) -> Finding:
        low, n = self._low(context, metric), len(context.pairs)
        return self.finding(
            "note",
            f"In {low} of {n} pairs ({percent(low / n)}) the corrupted run's {metric} is below {number(FLOOR)}: when "
            "denoising, no component can lower it by more than that, so its negative effects are not to be read.",
        )


COMPONENT = MetricChoice

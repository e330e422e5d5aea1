"""Below the numerical noise an effect is rounding."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from engramscope.audit._base import AuditContext, Check, Finding, Needs
from engramscope.audit._facts import gaps, without_cuts
from engramscope.audit._show import listed, number, percent, row_name

#: a floor above this share of the mean gap hides effects that matter
LARGE = 0.01


class NoiseFloor(Check):
    """Compares the effects with what patching a run with its own values does."""

    needs: ClassVar[Needs] = "pairs"
    title: ClassVar[str] = "Numerical noise"

    def run(self, context: AuditContext) -> list[Finding]:
        """A warning under 16-bit numbers or a large floor, a note about effects below it."""
        findings: list[Finding] = []
        dtype = context.study.model.dtype
        if dtype in ("bfloat16", "float16"):
            findings.append(
                self.finding(
                    "warning",
                    f"The model runs in {dtype}: small additions to the residual stream are rounded away. Use float32 "
                    "where memory allows.",
                )
            )
        if context.summary is not None and context.baselines is not None:
            for metric in context.study.metrics.names:
                findings += self._measured(context, metric)
        if context.summary is not None:
            return findings or self.ok("Every effect is above the noise floor.")
        told = f"The model runs in {dtype}; the noise floor will be measured by patching runs with their own values."
        return findings or self.ok(told)

    def _measured(self, context: AuditContext, metric: str) -> list[Finding]:
        floor = context.noise_floor.get(metric)
        if floor is None:
            return [
                self.finding("note", f"{metric}: the noise floor was not measured, so no effect is held against it.")
            ]
        summary = cast(Any, context.summary)
        rows = without_cuts(summary[summary["metric"] == metric]).dropna(subset=["effect"])
        below = rows[rows["effect"].astype(float).abs() <= floor]
        gap = _mean_gap(context, metric)
        findings = []
        if gap > 0 and floor > LARGE * gap:
            findings.append(
                self.finding(
                    "warning",
                    f"{metric}: the noise floor is {number(floor)}, {percent(floor / gap)} of the mean gap "
                    f"({number(gap)}). Effects of that size cannot be told from rounding; use float32, or float64.",
                )
            )
        if len(below):
            findings.append(
                self.finding(
                    "note",
                    f"{metric}: {len(below)} of {len(rows)} cells have an effect no larger than the noise floor of "
                    f"{number(floor)}; they are not counted as detected.",
                    listed(row_name(row) for _, row in below.iterrows()),
                )
            )
        return findings


def _mean_gap(context: AuditContext, metric: str) -> float:
    found = gaps(context, metric)
    return sum(found.values()) / len(found) if found else 0.0


COMPONENT = NoiseFloor

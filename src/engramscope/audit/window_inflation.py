"""A window of layers patched jointly shows more than its layers do one by one."""

from __future__ import annotations

from typing import Any, ClassVar

from engramscope.audit._base import AuditContext, Check, Finding, Needs
from engramscope.audit._facts import without_cuts
from engramscope.audit._show import named, number, row_name
from engramscope.study_file import SweepSection

#: a window that shows this many times the sum of its single layers is called inflated
FACTOR = 1.25


class WindowInflation(Check):
    """Sets windows beside the sum of their single layers."""

    needs: ClassVar[Needs] = "pairs"
    title: ClassVar[str] = "Windows of layers"

    def run(self, context: AuditContext) -> list[Finding]:
        """A note for each kind of window, a warning without single layers beside it or where it is inflated."""
        sweeps = context.study.sweep if context.sweeps is None else context.sweeps
        wide = [sweep for sweep in sweeps if sweep.window > 1]
        if not wide:
            return self.ok("Every sweep patches one layer at a time.")
        alone = [sweep.name for sweep in wide if not any(_beside(sweep, other) for other in sweeps)]
        findings: list[Finding] = []
        if alone:
            findings.append(
                self.finding(
                    "warning",
                    f"Windows of several layers without single layers beside them: {named(alone)}. Layers patched "
                    "jointly can show more than the sum of what they show alone; add a sweep of the same site with "
                    "window = 1.",
                )
            )
        if context.summary is not None:
            findings += [self._compared(sweep, context.summary) for sweep in wide if sweep.name not in alone]
        if findings:
            return findings
        widths = named(f"{sweep.name} (window {sweep.window})" for sweep in wide)
        return [self.finding("note", f"Windows will be shown beside the sum of their single layers: {widths}.")]

    def _compared(self, sweep: SweepSection, summary: Any) -> Finding:
        rows = without_cuts(summary[summary["sweep"] == sweep.name]).dropna(subset=["singles_sum", "estimate"])
        if rows.empty:
            return self.finding("note", f"Sweep {sweep.name}: no window can be compared with its single layers.")
        away, added = (_from_nothing(rows, column) for column in ("estimate", "singles_sum"))
        inflated = int((away > FACTOR * added).sum())
        peak = rows.loc[away.idxmax()]
        return self.finding(
            "warning" if away.max() > FACTOR * added[away.idxmax()] else "note",
            f"Sweep {sweep.name}: the strongest window ({row_name(peak)}, {peak['metric']}) shows "
            f"{number(float(peak['estimate']))}, its single layers add up to {number(float(peak['singles_sum']))}. In "
            f"{inflated} of {len(rows)} cells the window does more than {FACTOR:g} times what they add up to.",
        )


def _from_nothing(rows: Any, column: str) -> Any:
    """How far an estimate is from that of a patch without effect: 0, but a recovery of 1 where one noises."""
    nothing = (rows["direction"].eq("noise") & rows["estimate_kind"].eq("recovery")).astype(float)
    return (rows[column].astype(float) - nothing).abs()


def _beside(sweep: SweepSection, other: SweepSection) -> bool:
    if other.window != 1 or other.site != sweep.site:
        return False
    same = (other.heads, other.positions) == (sweep.heads, sweep.positions)
    return same and (other.direction == "both" or other.direction == sweep.direction)


COMPONENT = WindowInflation

"""Denoising shows what is sufficient, noising what is necessary: neither shows both."""

from __future__ import annotations

from typing import ClassVar

from engramscope.audit._base import AuditContext, Check, Finding, Needs
from engramscope.audit._facts import is_ablation
from engramscope.audit._show import named
from engramscope.study_file import SweepSection

_ONLY = {
    "denoise": (
        "Sweeps that denoise only ({}) show what is sufficient to restore the answer in the corrupted run. They do not "
        "show what is necessary: a component that has a double, or that needs a partner, looks different when noised."
    ),
    "noise": (
        "Sweeps that noise only ({}) show what is necessary for the answer. They do not show what is sufficient: many "
        "components are necessary without holding any of the knowledge."
    ),
}


class Direction(Check):
    """Says what the direction of the sweeps allows to conclude."""

    needs: ClassVar[Needs] = "pairs"
    title: ClassVar[str] = "Sufficient or necessary"

    def run(self, context: AuditContext) -> list[Finding]:
        """A note for each direction that stands alone."""
        if is_ablation(context.study):
            return [
                self.finding(
                    "note",
                    f"Ablation ({context.study.corruption.method}) shows what the answer needs. It does not show what "
                    "is sufficient, and it disturbs everything that the component does, not only what differs between "
                    "prompts.",
                )
            ]
        sweeps = context.study.sweep
        findings = []
        for way, text in _ONLY.items():
            alone = [sweep.name for sweep in sweeps if sweep.direction == way and not _answered(sweep, sweeps)]
            if alone:
                advice = 'Both are shown as a 2 × 2 with direction = "both".'
                findings.append(self.finding("note", f"{text.format(named(alone))} {advice}"))
        return findings or self.ok("Every sweep is run in both directions.")


def _answered(sweep: SweepSection, sweeps: list[SweepSection]) -> bool:
    """Whether another sweep runs the same patches the other way."""
    return any(
        other.direction != sweep.direction
        and (other.site, other.layers, other.heads, other.positions, other.window)
        == (sweep.site, sweep.layers, sweep.heads, sweep.positions, sweep.window)
        for other in sweeps
    )


COMPONENT = Direction

"""What was not computed is counted, never silently missing."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from engramscope.audit._base import AuditContext, Check, Finding, Needs
from engramscope.audit._show import count, listed, percent


class FailedRows(Check):
    """Counts the rows of the effects table that were skipped or failed."""

    needs: ClassVar[Needs] = "results"
    title: ClassVar[str] = "Skipped and failed rows"

    def run(self, context: AuditContext) -> list[Finding]:
        """A warning for failed rows, a note for skipped ones."""
        status = cast(Any, context.effects)["status"].astype(str)
        findings = []
        for kind, severity in (("failed", "warning"), ("skipped", "note")):
            rows = status[status.str.startswith(kind)]
            if len(rows):
                findings.append(
                    self.finding(
                        "warning" if severity == "warning" else "note",
                        f"{count(len(rows), 'row')} of {len(status)} ({percent(len(rows) / len(status))}) {kind}; the "
                        "estimates are over the others.",
                        listed(f"{times} × {reason}" for reason, times in rows.value_counts().items()),
                    )
                )
        return findings or self.ok(f"All {count(len(status), 'row')} were computed.")


COMPONENT = FailedRows

"""Where knowledge is read from is not where it is best changed."""

from __future__ import annotations

from typing import ClassVar

from engramscope.audit._base import AuditContext, Check, Finding, Needs


class LocalisationIsNotEditability(Check):
    """Stands beside every map."""

    needs: ClassVar[Needs] = "pairs"
    title: ClassVar[str] = "Localisation is not editability"

    def run(self, context: AuditContext) -> list[Finding]:
        """Always one note."""
        sites = ", ".join(dict.fromkeys(sweep.site for sweep in context.study.sweep))
        return [
            self.finding(
                "note",
                f"The map says where patching {sites} changes the answer. It does not say where an edit would work "
                "best: edits at layers that causal tracing does not point to have worked as well. Test that with a "
                "random-site control.",
            )
        ]


COMPONENT = LocalisationIsNotEditability

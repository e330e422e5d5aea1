"""Is the design of this study sound? One check per file, found by its name."""

from __future__ import annotations

from collections.abc import Collection

from engramscope.audit._base import NEEDS, SEVERITIES, AuditContext, Check, Finding, Needs, Severity
from engramscope.registry import Registry

CHECKS: Registry[Check] = Registry("engramscope.audit", Check, "check")

__all__ = ["CHECKS", "NEEDS", "SEVERITIES", "AuditContext", "Check", "Finding", "Needs", "Severity", "run_checks"]


def run_checks(context: AuditContext, phases: Collection[Needs] = NEEDS) -> list[Finding]:
    """Run every check whose needs are met.

    A check that fails with an exception is a bug of ours and is not hidden.

    Args:
        context: the study, as far as it has come.
        phases: run only checks with these needs.

    Returns:
        The findings: errors first, then warnings, notes and what was found in order; within these by check.
    """
    findings: list[Finding] = []
    for name in CHECKS.names():
        check = CHECKS.get(name)()
        if check.needs in phases and context.has(check.needs):
            findings += check.run(context)
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))

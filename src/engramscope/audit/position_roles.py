"""The same position index is not the same place in prompts that differ."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from engramscope.audit._base import AuditContext, Check, Finding, Needs
from engramscope.audit._show import count, listed, named

#: roles that any prompt has, named spans or not
_PLAIN = frozenset({"bos", "further", "last"})


class PositionRoles(Check):
    """Looks at whether single positions can be compared across prompts."""

    needs: ClassVar[Needs] = "tokens"
    title: ClassVar[str] = "Positions across prompts"

    def run(self, context: AuditContext) -> list[Finding]:
        """A note if positions are compared by role, a warning if no role tells them apart."""
        pairs = context.tokenized or []
        each = [sweep.name for sweep in context.study.sweep if sweep.positions == "each"]
        if not each:
            return self.ok("No sweep goes through single positions by their index.")
        layouts = {pair.clean.roles for pair in pairs}
        if len(layouts) <= 1:
            return self.ok("All prompts have the same roles in the same places, so positions are compared by index.")
        lengths = sorted({len(pair.clean) for pair in pairs})
        differ = f"from {lengths[0]} to {lengths[-1]} tokens" if len(lengths) > 1 else "with spans in different places"
        roles = Counter(role for pair in pairs for role in set(pair.clean.roles))
        if set(roles) <= _PLAIN:
            return [
                self.finding(
                    "warning",
                    f"Prompts differ ({differ}), so {named(each)} compares positions by role; but no span is named, "
                    "and all positions but the last fall into one. Name spans in the pairs (subject, …).",
                )
            ]
        return [
            self.finding(
                "note",
                f"Prompts differ ({differ}), so {named(each)} compares positions by role, not by index; positions of "
                "one role within a prompt are averaged.",
                listed(f"{role}: in {times} of {count(len(pairs), 'prompt')}" for role, times in roles.most_common()),
            )
        ]


COMPONENT = PositionRoles

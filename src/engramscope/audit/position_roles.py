"""The same position index is not the same place in prompts that differ."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import ClassVar

from engramscope.audit._base import AuditContext, Check, Finding, Needs
from engramscope.audit._show import count, listed, named, tokens
from engramscope.pairs.tokenized import TokenizedPair

#: roles that any prompt has, named spans or not
_PLAIN = frozenset({"bos", "further", "last"})


class PositionRoles(Check):
    """Looks at whether single positions can be compared across prompts."""

    needs: ClassVar[Needs] = "tokens"
    title: ClassVar[str] = "Positions across prompts"

    def run(self, context: AuditContext) -> list[Finding]:
        """A note if positions are compared by role, a warning if nothing tells them apart."""
        pairs = context.tokenized or []
        each = [sweep.name for sweep in context.study.sweep if sweep.positions == "each"]
        if not each:
            return self.ok("No sweep goes through single positions by their index.")
        layouts = {pair.clean.roles for pair in pairs}
        if len(layouts) <= 1:
            if other := self._other_templates(pairs, named(each)):
                return other
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

    def _other_templates(self, pairs: list[TokenizedPair], sweeps: str) -> list[Finding]:
        """Prompts of one length without spans are compared by index, whatever stands there."""
        if not {role for pair in pairs for role in pair.clean.roles} <= _PLAIN:
            return []
        differ, inner = _disagreements(pairs)
        if not differ:
            return []
        return [
            self.finding(
                "warning" if 2 * len(differ) > inner else "note",
                f"No span is named and all prompts have one length, so {sweeps} compares positions by their index; but "
                f"at {len(differ)} of {inner} positions inside the prompts different tokens stand, which no pair "
                "changes. Where prompts are of several templates the same index is not the same place: name spans in "
                "the pairs (subject, …).",
                listed(f"position {p}: {tokens(sorted(texts)[:5])}" for p, texts in differ.items()),
            )
        ]


def _disagreements(pairs: Sequence[TokenizedPair]) -> tuple[dict[int, set[str]], int]:
    """Positions before the last at which prompts hold different unchanged tokens, with these; and how many there are.

    A token is unchanged if the same one stands at its partner in the other prompt of its pair.
    """
    texts: dict[int, set[str]] = defaultdict(set)
    ids: dict[int, set[int]] = defaultdict(set)
    for pair in pairs:
        changed = set(pair.changed)
        for p, q in zip(pair.alignment.clean, pair.alignment.corrupted, strict=True):
            if q not in changed and p < len(pair.clean) - 1:
                ids[p].add(pair.clean.ids[p])
                texts[p].add(pair.clean.texts[p])
    inner = max((len(pair.clean) for pair in pairs), default=1) - 1
    return {p: texts[p] for p in sorted(ids) if len(ids[p]) > 1}, inner


COMPONENT = PositionRoles

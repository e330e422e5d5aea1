"""The same pair twice is not two observations."""

from __future__ import annotations

from collections import defaultdict
from typing import ClassVar

from engramscope.audit._base import AuditContext, Check, Finding, Needs
from engramscope.audit._facts import clusters_of
from engramscope.audit._show import count, listed, quoted


class DuplicatePairs(Check):
    """Looks for pairs with the same prompts and answers."""

    needs: ClassVar[Needs] = "pairs"
    title: ClassVar[str] = "Duplicate pairs"

    def run(self, context: AuditContext) -> list[Finding]:
        """A warning where duplicates count as independent, a note where they share a cluster."""
        copies: dict[object, list[tuple[str, str, str]]] = defaultdict(list)
        for pair, cluster in zip(context.pairs, clusters_of(context), strict=True):
            content = (pair.clean, pair.corrupted, pair.correct, pair.incorrect)
            copies[content].append((pair.id, cluster, pair.clean))
        repeated = [copy for copy in copies.values() if len(copy) > 1]
        if not repeated:
            return self.ok(f"All {count(len(context.pairs), 'pair')} differ.")
        apart = [copy for copy in repeated if len({cluster for _, cluster, _ in copy}) > 1]
        extra = sum(len(copy) - 1 for copy in repeated)
        message = f"{extra} of {count(len(context.pairs), 'pair')} repeat another one word for word"
        items = listed(f"{', '.join(name for name, _, _ in copy)}: {quoted(copy[0][2])}" for copy in apart or repeated)
        if apart:
            return [
                self.finding(
                    "warning",
                    f"{message}, and in {count(len(apart), 'case')} the copies count as independent, which makes "
                    "intervals too narrow. Drop them, or give them the same group.",
                    items,
                )
            ]
        return [
            self.finding("note", f"{message}; they share a cluster, so they are not counted as independent.", items)
        ]


COMPONENT = DuplicatePairs

"""Prompts of one template or subject are not independent: what counts is the number of clusters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import ClassVar

from engramscope.audit._base import AuditContext, Check, Finding, Needs
from engramscope.audit._facts import clusters_of
from engramscope.audit._show import count, listed, number, quoted
from engramscope.pairs.clusters import shared_by
from engramscope.pairs.pair import Pair

FEW = 10


class Clusters(Check):
    """Counts the independent units of the statistics."""

    needs: ClassVar[Needs] = "pairs"
    title: ClassVar[str] = "Independent units"

    def run(self, context: AuditContext) -> list[Finding]:
        """Warnings for few clusters or templates that nothing marks as one; a note where pairs have no group."""
        by, clusters = context.study.stats.cluster, Counter(clusters_of(context))
        n, k = len(context.pairs), len(clusters)
        findings = self._few(k, n, context.study.stats.family_error)
        alone = sum(1 for pair in context.pairs if not shared_by(pair, by))
        if by == "pair":
            findings += self._ignored(context.pairs)
        elif alone:
            whole = f"No pair has a {by}" if alone == n else f"{alone} of {n} pairs have no {by}"
            findings.append(
                self.finding(
                    "note",
                    f"{whole}, so each of them counts as independent of all others. Pairs from one template or about "
                    "one subject are not: name what they share.",
                )
            )
        if alone == n:
            findings += self._templates([pair for pair in context.pairs if _template(pair)])
        return findings or self.ok(f"{count(n, 'pair')} in {count(k, 'cluster')} by {by}.")

    def _few(self, k: int, n: int, level: float) -> list[Finding]:
        if k >= FEW:
            return []
        if k <= 1:
            told = "All pairs are in one cluster, so there is no interval and no test: every p is 1."
            return [self.finding("warning", f"{told} Name a finer cluster, or bring pairs of other kinds.")]
        smallest = 2.0 ** (1 - k)
        told = (
            f"The {count(n, 'pair')} make {k} clusters only. Intervals from so few are too narrow, and the smallest p "
            f"that a sign-flip test can give is {number(smallest)}"
        )
        if smallest > level:
            told += f": nothing can be detected at {number(level)}"
        return [self.finding("warning", f"{told}. {FEW} clusters or more are advised.")]

    def _ignored(self, pairs: Iterable[Pair]) -> list[Finding]:
        groups = Counter(pair.group for pair in pairs if pair.group)
        shared = [(name, times) for name, times in groups.most_common() if times > 1]
        if not shared:
            return []
        return [
            self.finding(
                "warning",
                f'Every pair counts as independent (cluster = "pair"), though '
                f"{sum(times for _, times in shared)} of them share a group with another one. Intervals are then too "
                'narrow; leave cluster = "group".',
                listed(f"{name}: {count(times, 'pair')}" for name, times in shared),
            )
        ]

    def _templates(self, pairs: list[Pair]) -> list[Finding]:
        shared = Counter(_template(pair) for pair in pairs)
        common = [(text, times) for text, times in shared.most_common() if times > 1]
        if not common or sum(times for _, times in common) < len(pairs) / 2:
            return []
        return [
            self.finding(
                "warning",
                f"{sum(times for _, times in common)} of {len(pairs)} pairs share a template with another one, but "
                "count as independent; intervals are then too narrow for a claim about other templates. Set their "
                "group.",
                listed(f"{times} × {quoted(text)}" for text, times in common),
            )
        ]


def _template(pair: Pair) -> str:
    """The clean prompt with its spans replaced by their names; empty without spans."""
    text = pair.clean
    for name, (start, end) in sorted(pair.spans.items(), key=lambda span: -span[1][0]):
        text = f"{text[:start]}[{name}]{text[end:]}"
    return text if pair.spans else ""


COMPONENT = Clusters

"""Positions without a partner cannot be patched."""

from __future__ import annotations

from typing import ClassVar

from engramscope.audit._base import AuditContext, Check, Finding, Needs
from engramscope.audit._show import count, listed, tokens
from engramscope.pairs.tokenized import TokenizedPair


class UnalignedPositions(Check):
    """Lists the positions that stand alone when prompts are aligned at both ends."""

    needs: ClassVar[Needs] = "tokens"
    title: ClassVar[str] = "Positions without a partner"

    def run(self, context: AuditContext) -> list[Finding]:
        """A note with the tokens that have no partner."""
        pairs = context.tokenized or []
        ragged = [pair for pair in pairs if pair.alignment.clean_only or pair.alignment.corrupted_only]
        if not ragged:
            return self.ok(f"Every position has a partner in all {count(len(pairs), 'pair')}.")
        places = sum(len(pair.alignment.clean_only) + len(pair.alignment.corrupted_only) for pair in ragged)
        return [
            self.finding(
                "note",
                f"In {count(len(ragged), 'pair')} of {len(pairs)} the prompts differ in length, and "
                f"{count(places, 'position')} have no partner. They are never patched; the tokens after them are "
                "compared from the end.",
                listed(f"{pair.pair.id}: {_alone(pair)}" for pair in ragged),
            )
        ]


def _alone(pair: TokenizedPair) -> str:
    parts = (
        ("clean", pair.clean.texts, pair.alignment.clean_only),
        ("corrupted", pair.corrupted.texts, pair.alignment.corrupted_only),
    )
    return "; ".join(f"{kind} {tokens([texts[p] for p in places])}" for kind, texts, places in parts if places)


COMPONENT = UnalignedPositions

"""Symmetric token replacement: the corrupted prompt is a natural prompt of equal length with another answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from engramscope.corruptions._base import Corruption, Draw, Level, ModelFacts
from engramscope.errors import PairsError
from engramscope.pairs.pair import Pair
from engramscope.pairs.tokenized import TokenizedPair


class SymmetricTokenReplacement(Corruption):
    """The key tokens of the prompt are replaced by similar ones, token for token.

    "The Eiffel Tower is in the city of" against "The Colosseum is in the city of": the corrupted prompt is as likely a
    prompt as the clean one, only with another right answer, so the model stays on its distribution; and the roles of
    the two prompts can be exchanged, hence *symmetric*. Every pair brings its own corrupted prompt. Both must have the
    same number of tokens, because position p of one run stands for position p of the other; a single token more would
    silently patch neighbours. They must differ in at least one token.

    Source: Zhang & Nanda, arXiv 2309.16042, §2 (symmetric token replacement); the default of every study.
    """

    level: ClassVar[Level] = "tokens"
    needs_corrupted: ClassVar[bool] = True

    def rewrite(self, pair: Pair) -> Pair:
        """The pair as it is.

        Raises:
            PairsError: it has no corrupted prompt, or one that does not differ from the clean prompt.
        """
        if pair.corrupted is None:
            raise PairsError(
                f"Pair {pair.id!r} has no corrupted prompt, which the corruption 'str' needs: add `corrupted`, or use "
                "a corruption that makes its own ('gaussian', 'answer')."
            )
        if pair.corrupted == pair.clean:
            raise PairsError(f"Pair {pair.id!r}: the clean and the corrupted prompt are the same text.")
        return pair

    def draws(self, pairs: Sequence[TokenizedPair], facts: ModelFacts, seed: int) -> list[list[Draw]]:
        """One draw for every pair.

        Raises:
            PairsError: lengths in tokens differ, or no token differs; every such pair is named.
        """
        faults = [fault for pair in pairs for fault in _faults(pair)]
        if faults:
            raise PairsError(faults)
        return super().draws(pairs, facts, seed)


def _faults(pair: TokenizedPair) -> list[str]:
    clean, corrupted = pair.clean, pair.corrupted
    if len(clean) != len(corrupted):
        return [
            f"Pair {pair.pair.id!r}: the clean prompt has {len(clean)} tokens, {list(clean.texts)}, and the corrupted "
            f"one {len(corrupted)}, {list(corrupted.texts)}; the corruption 'str' needs equally many."
        ]
    if clean.ids == corrupted.ids:
        return [f"Pair {pair.pair.id!r}: the clean and the corrupted prompt are the same tokens."]
    return []


COMPONENT = SymmetricTokenReplacement

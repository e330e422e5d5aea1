"""Zero ablation: the patched value is zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from engramscope.corruptions._base import Ablation, Corruption, Level, Zero
from engramscope.pairs.pair import Pair
from engramscope.pairs.tokenized import TokenizedPair


class ZeroAblation(Corruption):
    """`m(clean; node <- 0) - m(clean)`: what is lost when the node writes nothing at all.

    Zero is no value that the node ever takes, so the model leaves its distribution, and a constant part of the output
    that acts as a bias is removed with it; compare with `mean`. There is no corrupted run: direction `noise`
    only, recovery undefined; a prompt that the pair brings as `corrupted` is not used.

    Source: the usual definition; its weaknesses in Zhang & Nanda, arXiv 2309.16042, §1.
    """

    level: ClassVar[Level] = "activation"

    def rewrite(self, pair: Pair) -> Pair:
        """The pair without a corrupted prompt of its own."""
        return replace(pair, corrupted=None, corrupted_spans={})

    def ablations(self, pairs: Sequence[TokenizedPair], seed: int) -> list[list[Ablation]]:
        """One `Zero` for every pair."""
        return [[Zero()] for _ in pairs]


COMPONENT = ZeroAblation

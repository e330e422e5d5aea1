"""Mean ablation: the patched value is the node's average over the clean runs of a reference set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import ConfigDict

from engramscope.corruptions._base import Ablation, Corruption, CorruptionOptions, Level, Mean
from engramscope.errors import PairsError
from engramscope.pairs.pair import Pair
from engramscope.pairs.tokenized import TokenizedPair


class MeanOptions(CorruptionOptions):
    """Options of `mean`.

    Attributes:
        positions: "each": average position by position, over the pairs with equally many clean tokens; "all": one
            vector per node, the average over all positions of all pairs; "auto": "each" where all pairs have equally
            many tokens, else "all".
    """

    model_config = ConfigDict(strict=True)
    positions: Literal["auto", "each", "all"] = "auto"


class MeanAblation(Corruption):
    """`m(clean; node <- mean over the reference set) - m(clean)`: what is lost of what is particular to this prompt.

    The reference set is *all* pairs of the study, the pair itself included, as in Wang et al.: one constant per node,
    the same for every pair that shares it, so a node that is constant over the set is left exactly as it is. A
    pair's own value counts with weight 1/n, which shrinks its effect by about that share: use a hundred pairs. Equal
    position must mean equal role for "each" to make sense (prompts from one template).

    There is no corrupted run: direction `noise` only, recovery undefined; a prompt that the pair brings as `corrupted`
    is not used.

    Source: Wang et al., arXiv 2211.00593, §2 (mean ablation per template). Deviation: the reference set is the study's
    own clean prompts, not a separate distribution.
    """

    Options: ClassVar[type[CorruptionOptions]] = MeanOptions
    level: ClassVar[Level] = "activation"

    def __init__(self, options: CorruptionOptions) -> None:
        super().__init__(options)
        self._own = MeanOptions.model_validate(options.model_dump())

    def rewrite(self, pair: Pair) -> Pair:
        """The pair without a corrupted prompt of its own."""
        return replace(pair, corrupted=None, corrupted_spans={})

    def ablations(self, pairs: Sequence[TokenizedPair], seed: int) -> list[list[Ablation]]:
        """One `Mean` for every pair; pairs with the same reference set share the same object.

        With `positions = "each"` a pair that no other equals in length gets an empty list: it has no reference set,
        and the caller reports it as skipped.

        Raises:
            PairsError: fewer than two pairs, or "each" and all lengths different: no pair has a reference set.
        """
        if len(pairs) < 2:
            raise PairsError(
                f"The corruption 'mean' averages over the pairs of the study and needs at least 2; got {len(pairs)}."
            )
        by_length: dict[int, list[int]] = defaultdict(list)
        for index, pair in enumerate(pairs):
            by_length[len(pair.clean)].append(index)
        if self._own.positions == "all" or (self._own.positions == "auto" and len(by_length) > 1):
            everyone = Mean(tuple(range(len(pairs))), per_position=False)
            return [[everyone] for _ in pairs]
        means = {length: Mean(tuple(members), per_position=True) for length, members in by_length.items()}
        found: list[list[Ablation]] = [
            [mean] if len((mean := means[len(pair.clean)]).members) > 1 else [] for pair in pairs
        ]
        if not any(found):
            raise PairsError(
                "The corruption 'mean' with positions = \"each\" averages over prompts of equal length in tokens, but "
                f'all {len(pairs)} prompts have different lengths; use positions = "all".'
            )
        return found


COMPONENT = MeanAblation

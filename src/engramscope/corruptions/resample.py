"""Resample ablation: the patched value is that of another pair's clean run, several donors per pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

from engramscope.corruptions._base import Ablation, Corruption, CorruptionOptions, Donor, Level
from engramscope.corruptions._random import digest
from engramscope.pairs.pair import Pair
from engramscope.pairs.tokenized import TokenizedPair


class ResampleOptions(CorruptionOptions):
    """Options of `resample`.

    Attributes:
        draws: number of donors per pair (fewer where there are not so many).
    """

    model_config = ConfigDict(strict=True)
    draws: Annotated[int, Field(ge=1)] = 5


class ResampleAblation(Corruption):
    """`m(clean; node <- node in the donor's clean run) - m(clean)`, to be averaged over the donors.

    The value is one that the node really takes, on another prompt, so the model stays closer to its distribution than
    under `zero` or `mean`. Donors of a pair are other pairs with equally many clean tokens (values are taken position
    by position) and with other tokens (the same tokens would change nothing), drawn without replacement: donor number
    d is the d-th of all possible donors in the order of SHA-256(seed, pair id, donor id). So the draws depend neither
    on the order of the pairs nor on how many draws are asked for, and limiting the set changes them only where it
    removes one of the donors. Pairs of the same `group` may be donors: whether a group is a template (then only
    donors of the same group make sense position by position) or a subject (then they are too alike) is the study's
    business; filter the pairs accordingly.

    There is no corrupted run: direction `noise` only, recovery undefined; a prompt that the pair brings as `corrupted`
    is not used.

    Source: resampling ablation as in causal scrubbing (Chan et al. 2022).
    """

    Options: ClassVar[type[CorruptionOptions]] = ResampleOptions
    level: ClassVar[Level] = "activation"
    random: ClassVar[bool] = True

    def __init__(self, options: CorruptionOptions) -> None:
        super().__init__(options)
        self._own = ResampleOptions.model_validate(options.model_dump())

    def rewrite(self, pair: Pair) -> Pair:
        """The pair without a corrupted prompt of its own."""
        return replace(pair, corrupted=None, corrupted_spans={})

    def ablations(self, pairs: Sequence[TokenizedPair], seed: int) -> list[list[Ablation]]:
        """Up to `draws` donors for every pair; an empty list where there is none (the caller reports it as skipped)."""
        return [[Donor(index, d) for d, index in enumerate(self._donors(pairs, me, seed))] for me in range(len(pairs))]

    def _donors(self, pairs: Sequence[TokenizedPair], me: int, seed: int) -> list[int]:
        own = pairs[me]
        possible = [
            index
            for index, other in enumerate(pairs)
            if index != me and len(other.clean) == len(own.clean) and other.clean.ids != own.clean.ids
        ]
        possible.sort(key=lambda index: digest("resample", seed, own.pair.id, pairs[index].pair.id))
        return possible[: self._own.draws]


COMPONENT = ResampleAblation

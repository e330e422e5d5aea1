"""The same prompt in the model before it was trained: what differs is what training changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from engramscope.corruptions._base import Corruption, CorruptionOptions, Draw, Level, ModelFacts
from engramscope.pairs.pair import Pair
from engramscope.pairs.tokenized import TokenizedPair


class BaseModelOptions(CorruptionOptions):
    """Options of `base_model`.

    Attributes:
        base: the model before training: a bundled name, a folder, or a hub id; held as the study's model is. It may be
            left out only where the model is in memory and handed over.
        revision: branch, tag or commit of a hub model; the newest where it is empty.
    """

    base: str = ""
    revision: str = ""


class BaseModelRun(Corruption):
    """The clean run is the trained model's, the corrupted run is the base model's, on one and the same prompt.

    Denoising puts what training made into the base model: the values of the trained model's run at a site, or, at
    the sites `weights:…`, the weights of a part. Noising puts the base's into the trained model. A recovery of 1 is
    the trained model's answer, 0 is the base model's. Corrupted prompts that pairs bring are not looked at.

    Source: cross-model activation patching, Prakash et al., arXiv 2402.14811. The transplant is the `W ← W_clean` of
    CLAP (arXiv 2504.02976), which changes nothing within one model, between two.
    """

    Options: ClassVar[type[CorruptionOptions]] = BaseModelOptions
    level: ClassVar[Level] = "weights"

    def rewrite(self, pair: Pair) -> Pair:
        """The pair with its clean prompt only."""
        return replace(pair, corrupted=None, corrupted_spans={})

    def draws(self, pairs: Sequence[TokenizedPair], facts: ModelFacts, seed: int) -> list[list[Draw]]:
        """One draw for every pair: its prompt in the base model."""
        return [[Draw(0, model="base")] for _ in pairs]


COMPONENT = BaseModelRun

"""What a corruption is: how the corrupted run of a pair comes about."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from engramscope.engine.plan import Noise
from engramscope.pairs.pair import Pair
from engramscope.pairs.tokenized import TokenizedPair

#: what a corruption changes; see `Corruption.level`
Level: TypeAlias = Literal["tokens", "embedding", "activation", "weights"]


class CorruptionOptions(BaseModel):
    """Options of a corruption, as they stand beside `method` in the study file."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True)
class Draw:
    """One corrupted base run of a pair.

    Attributes:
        seed: the number of the draw, counted from 0; the `seed` column of the tables.
        noise: what is added to the token embeddings; None where the tokens themselves differ.
        model: which model runs it: the one that is studied, or the one that it was before it was trained.
    """

    seed: int
    noise: Noise | None = None
    model: Literal["own", "base"] = "own"


@dataclass(frozen=True, slots=True)
class Zero:
    """The patched value is zero."""


@dataclass(frozen=True, slots=True)
class Mean:
    """The patched value is the mean over the clean runs of `members` (indices into the pairs).

    Attributes:
        members: the reference set.
        per_position: average position by position (all members have equally many tokens); otherwise one vector per
            node, the mean over all positions of all members.
    """

    members: tuple[int, ...]
    per_position: bool


@dataclass(frozen=True, slots=True)
class Donor:
    """The patched value comes from the clean run of another pair, position by position.

    Attributes:
        pair: index of the donor.
        seed: the number of the draw.
    """

    pair: int
    seed: int


Ablation: TypeAlias = Zero | Mean | Donor


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a corruption may ask of the model.

    Attributes:
        encode: token ids of a text on its own, without special tokens.
        embed: output of the token embedding for ids [n] -> [n, d_model], float32 on the CPU.
        vocab: number of rows of the token embedding; 0 where nobody asks for it.
    """

    encode: Callable[[str], tuple[int, ...]]
    embed: Callable[[Sequence[int]], Tensor]
    vocab: int = 0


class Corruption(ABC):
    """A way to make the corrupted run; subclasses override what differs.

    Class attributes:
        Options: the pydantic class of its options.
        level: "tokens" (other tokens), "embedding" (noise on the embeddings), "activation" (an ablation: no corrupted
            run at all; the patch writes a value into the clean run, direction `noise` only, recovery undefined) or
            "weights" (the same prompt in another model).
        alignment: how the two prompts correspond: "equal" (same number of tokens, position by position) or
            "both_ends" (common beginning and common end; the rest has no partner).
        needs_corrupted: pairs must bring their own corrupted prompt.
        random: whether the result depends on the seed.
    """

    Options: ClassVar[type[CorruptionOptions]] = CorruptionOptions
    level: ClassVar[Level]
    alignment: ClassVar[Literal["equal", "both_ends"]] = "equal"
    needs_corrupted: ClassVar[bool] = False
    random: ClassVar[bool] = False

    def __init__(self, options: CorruptionOptions) -> None:
        self.options = options

    def rewrite(self, pair: Pair) -> Pair:
        """The pair with the prompts that are to be run (identity for most; `answer` appends the answers).

        Raises:
            PairsError: the pair lacks what this corruption needs.
        """
        return pair

    def draws(self, pairs: Sequence[TokenizedPair], facts: ModelFacts, seed: int) -> list[list[Draw]]:
        """The corrupted base runs of every pair: one for token corruptions, several for noise, none for ablations.

        The draws of a pair depend on (seed, pair id, number of the draw) only, never on the other pairs or their order.
        """
        return [[] if self.level == "activation" else [Draw(0)] for _ in pairs]

    def noise_level(self, pairs: Sequence[TokenizedPair], facts: ModelFacts) -> float | None:
        """Standard deviation of the noise that is added; None where none is."""
        return None

    def ablations(self, pairs: Sequence[TokenizedPair], seed: int) -> list[list[Ablation]]:
        """For level "activation": what is written into the clean run of every pair (one entry per draw)."""
        return [[] for _ in pairs]

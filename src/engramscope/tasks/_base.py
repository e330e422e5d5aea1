"""What a task is: a named maker of pairs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from engramscope.pairs.pair import PairSet


class Task(ABC):
    """Makes a `PairSet` without needing a model.

    Class attributes:
        version: changed whenever the same seed gives other pairs.
        source: where the content comes from.
        corruption: the corruption that the pairs are made for.
        model: the model whose tokenizer the pairs are made for, under which prompts that are to be aligned have equally
            many tokens; a bundled name, or that of a model to be fetched.
    """

    version: ClassVar[str]
    source: ClassVar[str]
    corruption: ClassVar[str] = "str"
    model: ClassVar[str]

    @abstractmethod
    def pairs(self, limit: int | None, rng: np.random.Generator) -> PairSet:
        """The task's pairs.

        Args:
            limit: at most this many; None for all (for generated tasks: a sensible number).
            rng: the only source of randomness.
        """

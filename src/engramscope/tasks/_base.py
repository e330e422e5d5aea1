"""What a task is: a named maker of pairs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from engramscope.pairs.pair import PairSet
from engramscope.pairs.vocabulary import Vocabulary


class TaskOptions(BaseModel):
    """The options of a task; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Setting:
    """What pairs are made for.

    Attributes:
        vocabulary: which words are one token; without a tokenizer, all of them.
        folder: where relative paths start.
    """

    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    folder: Path = Path()


@dataclass(frozen=True)
class Variant:
    """Which tokens of a task's prompts are corrupted.

    Attributes:
        name: of what is corrupted.
        options: the task's options that corrupt it by other tokens.
        spans: the same tokens by name, for noise.
    """

    name: str
    options: Mapping[str, Any]
    spans: tuple[str, ...]


class Task(ABC):
    """Makes a `PairSet` without needing a model.

    Class attributes:
        Options: the pydantic class of its options.
        version: changed whenever the same seed gives other pairs.
        source: where the content comes from.
        corruption: the corruption that the pairs are made for.
        model: the model whose tokenizer the pairs are made for, under which prompts that are to be aligned have equally
            many tokens; a bundled name, or that of a model to be fetched.
        span: the span that noise is added to.
        variants: which tokens may be corrupted; the first is the default. None: those of `span`.
        needs_tokenizer: words are chosen by the tokenizer in use; without one every word is taken for one token.

    Args:
        options: its options; the defaults if there are none.
    """

    Options: ClassVar[type[TaskOptions]] = TaskOptions
    version: ClassVar[str]
    source: ClassVar[str]
    corruption: ClassVar[str] = "str"
    model: ClassVar[str]
    span: ClassVar[str] = "subject"
    variants: ClassVar[tuple[Variant, ...]] = ()
    needs_tokenizer: ClassVar[bool] = False

    def __init__(self, options: TaskOptions | None = None) -> None:
        self.options = options if options is not None else self.Options()

    @classmethod
    def all_variants(cls) -> tuple[Variant, ...]:
        """Which tokens may be corrupted; the first is the default."""
        return cls.variants or (Variant(cls.span, {}, (cls.span,)),)

    @abstractmethod
    def pairs(self, limit: int | None, rng: np.random.Generator, setting: Setting) -> PairSet:
        """The task's pairs.

        Args:
            limit: at most this many; None for all (for generated tasks: a sensible number).
            rng: the only source of randomness.
            setting: the tokenizer, and where files are.

        Raises:
            PairsError: the tokenizer does not suit the task.
        """

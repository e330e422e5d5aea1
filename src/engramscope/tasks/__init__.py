"""Makers of pairs; one file each, found by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from engramscope.errors import PairsError
from engramscope.options import parse_options
from engramscope.pairs.pair import PairSet
from engramscope.pairs.vocabulary import Vocabulary
from engramscope.registry import Registry
from engramscope.tasks._base import Setting, Task

TASKS: Registry[Task] = Registry("engramscope.tasks", Task, "task")


def task_names() -> tuple[str, ...]:
    """The names of all tasks, sorted; imports none of them."""
    return TASKS.names()


def make_pairs(
    name: str,
    limit: int | None = None,
    seed: int = 0,
    tokenizer: Any = None,
    folder: Path | str = ".",
    **options: Any,
) -> PairSet:
    """The pairs of a task.

    Args:
        name: one of `task_names()`.
        limit: at most this many; None for all.
        seed: of the task's own generator; the same seed gives the same pairs (for the same tokenizer).
        tokenizer: of the model that they are for: generated tasks choose words that are one token. Without it every
            word is taken for one.
        folder: where relative paths in the options start.
        options: the task's own options.

    Raises:
        UnknownNameError: no task has this name.
        StudyError: options at fault.
        PairsError: `limit` is not positive, or the tokenizer does not suit the task.
    """
    if limit is not None and limit < 1:
        raise PairsError(f"The task {name!r} was asked for {limit} pairs; ask for at least one.")
    task = TASKS.get(name)
    setting = Setting(Vocabulary(tokenizer), Path(folder))
    return task(parse_options("task", name, task.Options, options)).pairs(limit, np.random.default_rng(seed), setting)

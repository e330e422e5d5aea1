"""Makers of pairs; one file each, found by its name."""

from __future__ import annotations

import numpy as np

from engramscope.errors import PairsError
from engramscope.pairs.pair import PairSet
from engramscope.registry import Registry
from engramscope.tasks._base import Task

TASKS: Registry[Task] = Registry("engramscope.tasks", Task, "task")


def task_names() -> tuple[str, ...]:
    """The names of all tasks, sorted; imports none of them."""
    return TASKS.names()


def make_pairs(name: str, limit: int | None = None, seed: int = 0) -> PairSet:
    """The pairs of a task.

    Args:
        name: one of `task_names()`.
        limit: at most this many; None for all.
        seed: of the task's own generator; the same seed gives the same pairs.

    Raises:
        UnknownNameError: no task has this name.
        PairsError: `limit` is not positive.
    """
    if limit is not None and limit < 1:
        raise PairsError(f"The task {name!r} was asked for {limit} pairs; ask for at least one.")
    return TASKS.get(name)().pairs(limit, np.random.default_rng(seed))

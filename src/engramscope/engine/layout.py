"""Where the tokens of the base runs lie in the traversal: what several runs begin with is there once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from engramscope.engine.plan import BaseRun

Ints: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """Base runs as rows, and their tokens as one flat array.

    Attributes:
        packed: tokens lie side by side, a shared prefix once; else every run has a padded row of its own.
        ids: token ids [tokens].
        positions: position of each token in its run [tokens].
        row: run id -> row of the tables below.
        table: flat token of each position [runs, longest]; 0 beyond a run's end.
        same: equal numbers for positions (of any runs) that hold the same value whatever the weights are: equal tokens
            and noise up to there [runs, longest].
        start, end: positions [start, end) of a run have tokens of their own; what comes before lies in other runs.
        offset: flat token of the position `start`.
        noise: (flat tokens, what is added to their embeddings [tokens, d_model]).
    """

    packed: bool
    ids: Ints
    positions: Ints
    row: Mapping[str, int]
    table: Ints
    same: Ints
    start: Ints
    end: Ints
    offset: Ints
    noise: tuple[tuple[Ints, Tensor], ...]

    @property
    def tokens(self) -> int:
        """Number of flat tokens."""
        return len(self.ids)

    @property
    def longest(self) -> int:
        """Length of the longest run."""
        return self.table.shape[1]


def lay_out(bases: Sequence[BaseRun], ends: Mapping[str, int], packed: bool) -> Layout:
    """Arrange base runs.

    Args:
        bases: the runs.
        ends: run id -> number of tokens that anybody can see (at least 1); the rest is left out.
        packed: side by side, or a padded row for each run.
    """
    longest = max(ends[base.id] for base in bases)
    nodes, start = _prefix_tree(bases, ends, longest)
    end = np.array([ends[base.id] for base in bases])
    row = {base.id: number for number, base in enumerate(bases)}
    if packed:
        table = nodes
        count = int(nodes.max()) + 1
        ids, positions = np.zeros(count, np.int64), np.zeros(count, np.int64)
        for number, base in enumerate(bases):
            own = nodes[number, start[number] : end[number]]
            ids[own] = base.tokens[start[number] : end[number]]
            positions[own] = np.arange(start[number], end[number])
    else:
        # a run that is the beginning of another one has no row of its own
        own = start < end
        rows = np.cumsum(own) - 1
        holder: dict[int, int] = {}
        for number in np.flatnonzero(own):
            holder.update(dict.fromkeys(nodes[number, start[number] : end[number]].tolist(), int(rows[number])))
        which = np.array([holder[int(nodes[number, end[number] - 1])] for number in range(len(bases))])
        table = which[:, None] * longest + np.arange(longest)
        ids, positions = np.zeros(own.sum() * longest, np.int64), np.tile(np.arange(longest), own.sum())
        for number, base in enumerate(bases):
            ids[table[number, : end[number]]] = base.tokens[: end[number]]
        start, end = np.where(own, 0, longest), np.full_like(end, longest)
    offset = table[np.arange(len(bases)), np.minimum(start, longest - 1)]
    noise = _noise(bases, ends, table, start)
    return Layout(packed, ids, positions, row, table, nodes, start, end, offset, noise)


def _prefix_tree(bases: Sequence[BaseRun], ends: Mapping[str, int], longest: int) -> tuple[Ints, Ints]:
    """A number for each distinct beginning, in the order of first use, and where each run leaves the ones before it."""
    known: dict[tuple[int, int, tuple[int, int] | None], int] = {}
    nodes = np.zeros((len(bases), longest), np.int64)
    start = np.zeros(len(bases), np.int64)
    for number, base in enumerate(bases):
        noise = base.noise
        added = {} if noise is None else {position: (id(noise), i) for i, position in enumerate(noise.positions)}
        parent, own = -1, None
        for position in range(ends[base.id]):
            key = (parent, base.tokens[position], added.get(position))
            count = len(known)
            node = known.setdefault(key, count)
            if own is None and node == count:
                own = position  # from here on every beginning is new
            nodes[number, position] = parent = node
        start[number] = ends[base.id] if own is None else own
    return nodes, start


def _noise(
    bases: Sequence[BaseRun], ends: Mapping[str, int], table: Ints, start: Ints
) -> tuple[tuple[Ints, Tensor], ...]:
    found = []
    for number, base in enumerate(bases):
        if base.noise is None:
            continue
        # only the run that owns a token adds to it
        kept = [
            i for i, p in enumerate(base.noise.positions)
            if p < ends[base.id] and p >= start[number]
        ]  # fmt: skip
        if kept:
            positions = np.array([base.noise.positions[i] for i in kept])
            found.append((table[number, positions], base.noise.values[kept]))
    return tuple(found)

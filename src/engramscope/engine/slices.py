"""The tokens of one call of a block, and where the keys and values of its rows come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from engramscope.engine.layout import Ints

#: a slice ends where its rows, padded to one width, would hold this many times the tokens that there are: the padding
#: costs attention only, and a small slice costs all matrix products
_PADDING = 4.0


@dataclass
class Rows:
    """Runs that pass a block together; each is a row of queries over the keys that it sees.

    Attributes:
        queries: numbers of the query tokens, ascending (flat tokens, or tokens of derived runs).
        others: numbers of tokens of which only keys and values are needed; not among `queries`.
        counts: queries of each row.
        positions: position of each query token.
        base_keys: flat token of each key position [rows, keys]; where a row has a token of its own there, anything.
        own_start, own_end: positions [own_start, own_end) of a row are seen in its own tokens; equal for none.
        device: where index tensors go.
    """

    queries: Ints
    others: Ints
    counts: Ints
    positions: Ints
    base_keys: Ints
    own_start: Ints
    own_end: Ints
    device: torch.device
    gathered: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.counts)

    @cached_property
    def width(self) -> int:
        """Queries of the longest row."""
        return int(self.counts.max())

    @property
    def keys(self) -> int:
        """Key positions."""
        return self.base_keys.shape[1]

    @cached_property
    def even(self) -> bool:
        """Whether every row has the same number of queries, so that no padding is needed."""
        return bool((self.counts == self.width).all())

    @cached_property
    def _grid(self) -> Ints:
        """Place of each query token in the padded rows."""
        row = np.repeat(np.arange(self.count), self.counts)
        first = np.cumsum(self.counts) - self.counts
        return row * self.width + np.arange(len(self.queries)) - first[row]

    @cached_property
    def grid(self) -> Tensor:
        """Place of each query token in the padded rows [queries]."""
        return self._tensor(self._grid)

    @cached_property
    def spread(self) -> Tensor:
        """Query token of each place in the padded rows [rows * width]; any where there is none."""
        spread = np.zeros(self.count * self.width, np.int64)
        spread[self._grid] = np.arange(len(self.queries))
        return self._tensor(spread)

    @cached_property
    def span(self) -> tuple[int, int] | None:
        """(first, last + 1) positions of the queries where they are the same, and adjacent, in every row."""
        if not self.even:
            return None
        grid = self.positions.reshape(self.count, self.width)
        wanted = grid[0, 0] + np.arange(self.width)
        return (int(grid[0, 0]), int(grid[0, 0]) + self.width) if bool((grid == wanted).all()) else None

    @cached_property
    def padded_positions(self) -> Tensor:
        """Position of each query [rows, width]; 0 where there is none."""
        positions = np.zeros(self.count * self.width, np.int64)
        positions[self._grid] = self.positions
        return self._tensor(positions.reshape(self.count, self.width))

    @cached_property
    def shared_start(self) -> int | None:
        """Where own keys begin, if that is the same in every row, they reach to the end, and all tokens are queries."""
        if len(self.others) or self.own_start[0] >= self.keys:
            return None
        same = (self.own_start == self.own_start[0]).all() and (self.own_end == self.keys).all()
        return int(self.own_start[0]) if bool(same) else None

    @cached_property
    def repeats(self) -> int | None:
        """How many adjacent rows have the same keys before `shared_start`, if it is the same number everywhere."""
        heads = self.base_keys[:, : self.shared_start]
        changes = 1 + np.flatnonzero((heads[1:] != heads[:-1]).any(axis=1))
        sizes = np.diff(np.concatenate([[0], changes, [self.count]]))
        return int(sizes[0]) if (sizes == sizes[0]).all() else None

    @cached_property
    def prefix(self) -> Tensor:
        """Flat tokens of the keys before `shared_start`, once for `repeats` rows [rows / repeats * shared_start]."""
        return self._tensor(self.base_keys[:: self.repeats or 1, : self.shared_start].reshape(-1))

    @cached_property
    def all_keys(self) -> Tensor:
        """Flat tokens of all keys [rows * keys]."""
        return self._tensor(self.base_keys.reshape(-1))

    @cached_property
    def own_places(self) -> Tensor | None:
        """Places in [rows * keys] of own tokens, in the order of the local table; None where rows have none."""
        sizes = self.own_end - self.own_start
        if not sizes.any():
            return None
        row = np.repeat(np.arange(self.count), sizes)
        first = np.cumsum(sizes) - sizes
        return self._tensor(row * self.keys + self.own_start[row] + np.arange(len(row)) - first[row])

    @cached_property
    def local(self) -> tuple[Tensor, Tensor] | None:
        """Places of `others` and of `queries` in the local table of keys; None where all are queries."""
        if not len(self.others):
            return None
        both = np.sort(np.concatenate([self.others, self.queries]))
        return tuple(self._tensor(np.searchsorted(both, part)) for part in (self.others, self.queries))  # type: ignore[return-value]

    def _tensor(self, values: Ints) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)


def cut(sizes: Ints, limit: int) -> Iterator[tuple[int, int]]:
    """Ranges [first, last) of adjacent runs with at most `limit` tokens (at least one run), of similar size.

    Args:
        sizes: tokens of each run.
        limit: tokens of a slice.
    """
    first, tokens, widest = 0, 0, 0
    for number, size in enumerate(sizes.tolist()):
        wide = max(widest, size)
        padded = (number + 1 - first) * wide
        if number > first and (tokens + size > limit or padded > _PADDING * (tokens + size)):
            yield first, number
            first, tokens, wide = number, 0, size
        tokens, widest = tokens + size, wide
    if len(sizes):
        yield first, len(sizes)

"""Numbers of runs and tokens: who is alive when, and the rows that pass a block together."""

from __future__ import annotations

import numpy as np
import torch

from engramscope.engine.layout import Ints
from engramscope.engine.resolve import LiveRun, Resolved
from engramscope.engine.slices import Rows, cut
from engramscope.engine.stages import Stage, stage


class RunIndex:
    """Tables over derived runs and their tokens; runs are ordered by level and birth.

    Attributes:
        size, offset, start, end, row: per run.
        base_token: the flat token that each derived token stands for.
        position: its position.
        given_token: the token of the model's own forward whose arguments it takes.
        stem: derived tokens that go through the model's own embedding.
    """

    def __init__(self, work: Resolved) -> None:
        runs = work.runs
        self.offset = np.array([run.offset for run in runs], np.int64)
        self.start = np.array([run.start for run in runs], np.int64)
        self.end = np.array([run.end for run in runs], np.int64)
        self.row = np.array([run.row for run in runs], np.int64)
        self.size = self.end - self.start
        self._key = np.array([_key(run.level, run.birth) for run in runs], np.int64)
        which = np.repeat(np.arange(len(runs)), self.size)
        self.position = self.start[which] + np.arange(len(which)) - self.offset[which]
        self.base_token = work.layout.table[self.row[which], self.position]
        born_in_stem = np.array([run.birth.moment == "stem" for run in runs], bool)
        self.stem = np.flatnonzero(born_in_stem[which]) if len(which) else np.zeros(0, np.int64)
        self.given_token = self.base_token.copy()
        self.given_token[self.stem] = work.layout.tokens + np.arange(len(self.stem))

    def born(self, level: int, birth: Stage) -> slice:
        """Runs of a level that are born at a stage."""
        key = _key(level, birth)
        return slice(int(np.searchsorted(self._key, key)), int(np.searchsorted(self._key, key, side="right")))

    def alive(self, level: int, at: Stage) -> slice:
        """Runs of a level that are born at a stage or before it."""
        first = int(np.searchsorted(self._key, level * _LEVEL))
        return slice(first, int(np.searchsorted(self._key, _key(level, at), side="right")))

    def tokens(self, runs: slice) -> slice:
        """Derived tokens of adjacent runs."""
        if runs.start >= runs.stop:
            return slice(0, 0)
        return slice(int(self.offset[runs.start]), int(self.offset[runs.stop - 1] + self.size[runs.stop - 1]))


_LEVEL = 1 << 32


def _key(level: int, birth: Stage) -> int:
    return level * _LEVEL + birth.number


class RowIndex:
    """The rows that pass a block together; made once and used in every layer.

    Args:
        work: what is to be done.
        runs: its tables.
        limit: tokens of one call of a block, about.
        device: where index tensors go.
        prune: in the last block, compute only what is looked at.
    """

    def __init__(self, work: Resolved, runs: RunIndex, limit: int, device: torch.device, *, prune: bool) -> None:
        self._work, self._runs, self._limit, self._device, self._prune = work, runs, limit, device, prune
        self._known: dict[tuple[bool, bool, int, int], Rows] = {}

    def of_bases(self, *, last: bool) -> list[Rows]:
        """Rows of the base runs."""
        layout = self._work.layout
        chosen = np.flatnonzero(layout.end > layout.start)
        none = np.zeros(len(chosen), np.int64)
        found = []
        for first, stop in cut((layout.end - layout.start)[chosen], self._limit):
            part = chosen[first:stop]
            key = (True, last, first, stop)
            if key not in self._known:
                self._known[key] = self._rows(
                    layout.offset[part], layout.start[part], layout.end[part], part, none[: len(part)],
                    none[: len(part)], 0 if last and self._prune else None,
                )  # fmt: skip
            found.append(self._known[key])
        return found

    def of_runs(self, runs: slice, *, last: bool) -> list[Rows]:
        """Rows of adjacent derived runs, all their tokens."""
        index, found = self._runs, []
        shift = self._work.layout.tokens if last and self._prune else None
        for first, stop in cut(index.size[runs], self._limit):
            key = (False, last, runs.start + first, runs.start + stop)
            if key not in self._known:
                part = slice(key[2], key[3])
                self._known[key] = self._rows(
                    index.offset[part], index.start[part], index.end[part], index.row[part], index.start[part],
                    index.end[part], shift,
                )  # fmt: skip
            found.append(self._known[key])
        return found

    def of_patched(self, runs: slice, *, last: bool) -> list[Rows]:
        """Rows of derived runs that are born inside the block: only their patched tokens, over their bases' keys."""
        count = self._work.layout.tokens
        chosen: list[LiveRun] = []
        tokens: list[Ints] = []
        for run in self._work.runs[runs]:
            own = run.offset + run.local - run.start
            own = own[self._work.needed[count + own]] if last and self._prune else own
            if len(own):
                chosen.append(run)
                tokens.append(own)
        sizes = np.array([len(own) for own in tokens], np.int64)
        found = []
        for first, stop in cut(sizes, self._limit):
            own = np.concatenate(tokens[first:stop])
            none = np.zeros(stop - first, np.int64)
            keys = max(run.end for run in chosen[first:stop])
            table = self._work.layout.table[[run.row for run in chosen[first:stop]], :keys]
            found.append(Rows(own, none[:0], sizes[first:stop], self._runs.position[own], table, none, none,
                              self._device))  # fmt: skip
        return found

    def _rows(
        self, offset: Ints, start: Ints, end: Ints, row: Ints, own_start: Ints, own_end: Ints, shift: int | None
    ) -> Rows:
        """Rows of whole runs; with `shift` (from numbers to handles), queries are only what is looked at later."""
        sizes = end - start
        which = np.repeat(np.arange(len(sizes)), sizes)
        within = np.arange(len(which)) - (np.cumsum(sizes) - sizes)[which]
        tokens, positions = offset[which] + within, start[which] + within
        asked = np.ones(len(tokens), bool) if shift is None else self._work.needed[shift + tokens]
        counts = np.bincount(which[asked], minlength=len(sizes))
        table = self._work.layout.table[row, : int(end.max())]
        return Rows(tokens[asked], tokens[~asked], counts, positions[asked], table, own_start, own_end, self._device)


def local_stage(layer: int) -> Stage:
    """The stage at which runs are born in the middle of a block."""
    return stage("local", layer, 0)

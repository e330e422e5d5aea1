"""The end of a traversal: only the tokens that are read go through the final norm and the head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engramscope.engine.answered import Answered
from engramscope.engine.gather import placeholder, rows_at
from engramscope.engine.layout import Ints
from engramscope.engine.resolve import Resolved
from engramscope.engine.stages import Place, stage
from engramscope.engine.writes import Store, WriteGroup, grouped, written
from engramscope.models.drive import passed_by, replaced
from engramscope.models.hooks import taps
from engramscope.models.model import Model
from engramscope.models.offload import held

#: rows of logits at a time, before `tail_rows` of the budget says fewer
MAX_ROWS = 4096


@dataclass(frozen=True)
class Tail:
    """Reads the logits of runs whose residual streams have left the last block.

    Attributes:
        model: the model.
        forms: what its blocks return (`example_outputs`).
        work: what is to be done.
        store: where values are kept that others read.
        stream: handles -> residual streams [handles, d_model].
        rows: full rows of logits at a time.
        columns: run id -> token ids whose logits are wanted; None for all.
        narrow: whether the head can be applied to some of its columns alone.
    """

    model: Model
    forms: Sequence[Any]
    work: Resolved
    store: Store
    stream: Callable[[Ints], Tensor]
    rows: int
    columns: Mapping[str, tuple[int, ...]] | None
    narrow: bool

    def answers(self) -> Iterator[Answered]:
        """All read-outs, those of equal number of positions together."""
        tail = stage("tail", -1, self.model.anatomy.n_layers)
        levels = {run.id: run.level for run in self.work.runs if any(at == tail for at, *_ in run.patches)}
        aliased = {run: base for run, base in self.work.alias.items() if run in self.work.readouts}
        for level in range(self.work.levels + 1):
            writes = self.work.writes.get((tail.layer, level), {}).get(tail, [])
            groups = grouped(writes)
            self._keep(level, levels, groups)
            runs = [r for r in self.work.readouts if levels.get(r, 0) == level and r not in aliased]
            yield from self._of_runs(runs, groups)
        for base in dict.fromkeys(aliased.values()):
            yield from self._of_equals([run for run, other in aliased.items() if other == base])

    def _keep(self, level: int, levels: Mapping[str, int], groups: Mapping[Place, list[WriteGroup]]) -> None:
        """Values in the tail that runs of a higher level read of runs of this one."""
        count = self.work.layout.tokens
        owner = {run.id: (count + run.offset, count + run.offset + run.tokens) for run in self.work.runs}
        of_level = np.zeros(count + self.work.own_tokens, bool)
        of_level[:] = level == 0
        for run, at in levels.items():
            of_level[slice(*owner[run])] = at == level
        wanted = [
            handles[of_level[handles]]
            for place, handles in self.work.reads.items()
            if place[1] is None and self._in_tail(place)
        ]
        handles = np.unique(np.concatenate(wanted)) if wanted else np.zeros(0, np.int64)
        for first in range(0, len(handles), self.rows):
            self._logits(handles[first : first + self.rows], groups, None)

    def _in_tail(self, place: Place) -> bool:
        return place[0] in ("final_norm", "logits") or self.model.phase(place[0]) == "tail"

    def _of_runs(self, runs: Sequence[str], groups: Mapping[Place, list[WriteGroup]]) -> Iterator[Answered]:
        by_count: dict[int, list[str]] = {}
        for run in runs:
            by_count.setdefault(len(self.work.readouts[run]), []).append(run)
        for count, members in by_count.items():
            for part in self._parts(members, max(1, count)):
                handles = np.concatenate([self.work.readouts[run] for run in part])
                columns = self._columns(part)
                unique, back = np.unique(handles, return_inverse=True)
                logits = self._logits(unique, groups, columns)
                if len(unique) < len(handles) or (handles != unique).any():
                    logits = rows_at(logits, back.reshape(-1))
                yield Answered(tuple(part), logits.unflatten(0, (len(part), count)), columns)

    def _of_equals(self, runs: Sequence[str]) -> Iterator[Answered]:
        """Runs that are their base: one row of logits for those with equal read-outs, shown to all without a copy."""
        columns = self._columns(runs)
        by_readout: dict[tuple[int, ...], list[str]] = {}
        for run in runs:
            by_readout.setdefault(tuple(self.work.readouts[run].tolist()), []).append(run)
        for readout, members in by_readout.items():
            handles = np.array(readout, np.int64)
            unique = np.unique(handles)
            logits = self._logits(unique, {}, columns)
            one = rows_at(logits, np.searchsorted(unique, handles))
            yield Answered(tuple(members), one[None].expand(len(members), -1, -1), columns)

    def _parts(self, runs: Sequence[str], rows_each: int) -> Iterator[Sequence[str]]:
        """Runs a slice at a time: fewer where the whole vocabulary is wanted."""
        if self.columns is not None and self.narrow:
            size = max(1, MAX_ROWS // rows_each)
        else:
            size = max(1, self.rows // rows_each)
        for first in range(0, len(runs), size):
            yield runs[first : first + size]

    def _columns(self, runs: Sequence[str]) -> Tensor | None:
        if self.columns is None:
            return None
        wanted = sorted({token for run in runs for token in self.columns[run]})
        return torch.tensor(wanted, dtype=torch.long)

    def _logits(self, handles: Ints, groups: Mapping[Place, list[WriteGroup]], columns: Tensor | None) -> Tensor:
        """Logits [handles, vocab or columns]; what others read in the tail is kept on the way."""
        hidden = self.stream(handles)
        places = list(dict.fromkeys([*groups, *(place for place in self.work.reads if self._in_tail(place))]))
        wanted = [(self.model.site(*place), self._tap(place, groups.get(place, ()), handles)) for place in places]
        narrow = columns is not None and self.narrow and not places
        last = self.model.anatomy.n_layers - 1
        head = self.model.hf.get_submodule(self.model.anatomy.head)
        token = placeholder(self.model, len(handles), 1)
        with ExitStack() as stack:
            stack.enter_context(taps(self.model, wanted))
            stack.enter_context(held(head))
            if narrow and columns is not None:
                stack.enter_context(_some_columns(self.model, columns))
            output = passed_by(
                self.model.hf, self.model.blocks, self.forms, token,
                lambda layer, args, kwargs: hidden[:, None] if layer == last else None,
            )  # fmt: skip
        logits = output.logits[:, 0]
        return logits if columns is None or narrow else logits[:, columns.to(logits.device)]

    def _tap(self, place: Place, groups: Sequence[WriteGroup], handles: Ints) -> Callable[[Tensor], Tensor | None]:
        access, count = self.model.site(*place), self.work.layout.tokens

        def tap(value: Tensor) -> Tensor | None:
            flat = value.reshape(len(handles), -1)
            new = written(flat, place, groups, handles - count, self.store, access)
            if self.store.wants(place):
                self.store.keep(place, handles, flat if new is None else new)
            return None if new is None else new.view(value.shape)

        return tap


def _some_columns(model: Model, columns: Tensor) -> Any:
    """A context in which the head computes these columns only."""
    head = model.hf.get_submodule(model.anatomy.head)
    assert isinstance(head, nn.Linear)
    index = columns.to(head.weight.device)

    def forward(hidden: Tensor) -> Tensor:
        bias = None if head.bias is None else head.bias[index]
        return nn.functional.linear(hidden, head.weight[index], bias)

    return replaced(head, "forward", forward)

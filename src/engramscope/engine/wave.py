"""The wave front: base runs pass a block, then all derived runs that are alive, and those that are born there."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engramscope.engine.attention import PackedAttention
from engramscope.engine.blocks import BlockCaller, Groups, Tokens
from engramscope.engine.gather import index_tensor, rows_at
from engramscope.engine.index import RowIndex, RunIndex
from engramscope.engine.layout import Ints
from engramscope.engine.resolve import Resolved
from engramscope.engine.shortcuts import Shortcuts
from engramscope.engine.slices import Rows
from engramscope.engine.stages import Stage, stage
from engramscope.engine.writes import Store, grouped
from engramscope.models.fused import FusedLinears
from engramscope.models.model import Model


class Wave:
    """Residual streams of all runs, carried through the blocks.

    Args:
        model: the model.
        work: what is to be done.
        runs: tables over the derived runs.
        store: where values are kept that others read.
        attention: attends packed tokens; None where runs are whole rows and the model's own attention does.
        masks: per layer, the mask of a plain run (packed only).
        slice_tokens: tokens of one call of a block, about.
        shortcuts: what need not be computed; None to compute everything.
        fused: modules that one kernel computes together; None to call them one after the other.

    Attributes:
        base: residual streams of the base runs [flat tokens, d_model].
        own: residual streams of the derived runs [their tokens, d_model].
        bad_base, bad_own: the first layer after which a token's value was not finite; the number of layers for none.
    """

    def __init__(
        self,
        model: Model,
        work: Resolved,
        runs: RunIndex,
        store: Store,
        attention: PackedAttention | None,
        masks: Sequence[Tensor],
        slice_tokens: int,
        shortcuts: Shortcuts | None,
        fused: FusedLinears | None,
    ) -> None:
        self.work, self.runs, self.store, self.attention, self.masks = work, runs, store, attention, masks
        self.model, self.n_layers = model, model.anatomy.n_layers
        self.caller = BlockCaller(model, work, store, attention, shortcuts)
        self.slice_tokens, self.fused = slice_tokens, fused
        self.base = self.own = self.bad_base = self.bad_own = torch.empty(0)
        self._index: RowIndex | None = None

    def begin(self, hidden: Tensor) -> None:
        """Take the residual streams before the first block [base tokens, then derived tokens of the stem, d_model]."""
        count = self.work.layout.tokens
        self.base = hidden[:count]
        self.own = hidden.new_empty((self.work.own_tokens, hidden.shape[1]))
        self.own[index_tensor(self.runs.stem, hidden.device)] = hidden[count:]
        self.bad_base = torch.full((count,), self.n_layers, device=hidden.device)
        self.bad_own = torch.full((self.work.own_tokens,), self.n_layers, device=hidden.device)
        prune = self.attention is not None
        self._index = RowIndex(self.work, self.runs, self.slice_tokens, hidden.device, prune=prune)

    def layer(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any], total: int) -> None:
        """Everything that happens in one block.

        Args:
            layer: which.
            args, kwargs: what the model calls the block with, besides the residual stream.
            total: for how many tokens (or rows) these were made.
        """
        assert self._index is not None
        index, last = self._index, layer == self.n_layers - 1
        levels = range(1, self.work.levels + 1)
        self.caller.begin_layer(layer, args, kwargs, total)
        if self.attention is not None:
            self.attention.begin_layer(self.masks[layer], self.work.layout.tokens)
            born = [self.runs.born(level, self._stage("local", layer)) for level in levels]
            self.attention.keep_output = any(runs.start < runs.stop for runs in born)
        self._before(layer)
        after = self.base.clone()
        patched: dict[int, list[tuple[Ints, Tensor]]] = {}
        with self._fused(layer):
            for rows in index.of_bases(last=last):
                self._advance(layer, rows, after)
            for level in levels:
                found = self.work.writes.get((layer, level), {})
                groups = grouped([write for at, writes in found.items() if at.inside for write in writes])
                alive = self.runs.alive(level, self._stage("mixed", layer))
                for rows in index.of_runs(alive, last=last):
                    self._advance(layer, rows, self.own, groups)
                born = self.runs.born(level, self._stage("local", layer))
                patched[level] = [
                    (rows.queries, self._computed(layer, rows, groups)) for rows in index.of_patched(born, last=last)
                ]
        self.base = after
        for level in levels:
            self._after(layer, level, patched[level])
        self.caller.end_layer()

    def _fused(self, layer: int) -> AbstractContextManager[None]:
        if self.fused is None:
            return nullcontext()
        tokens, places = len(self.base), dict.fromkeys(self.caller.places)
        for level in range(1, self.work.levels + 1):
            alive = self.runs.tokens(self.runs.alive(level, self._stage("local", layer)))
            tokens += alive.stop - alive.start
            for at, writes in self.work.writes.get((layer, level), {}).items():
                places.update(dict.fromkeys(write.place for write in writes if at.inside))
        return self.fused.taken(layer, tokens, [self.model.site(*place) for place in places])

    def _stage(self, moment: Any, layer: int) -> Stage:
        return stage(moment, layer, self.n_layers)

    def _before(self, layer: int) -> None:
        for level in range(1, self.work.levels + 1):
            self._copy_born(level, self._stage("pre", layer))
            self._copy_born(level, self._stage("mixed", layer))
            self._write_stream(level, self._stage("pre", layer))

    def _after(self, layer: int, level: int, patched: Sequence[tuple[Ints, Tensor]]) -> None:
        self._copy_born(level, self._stage("local", layer))
        for numbers, values in patched:
            self.own[index_tensor(numbers, self.own.device)] = values
        self._copy_born(level, self._stage("post", layer))
        if layer == self.n_layers - 1:
            self._copy_born(level, self._stage("tail", layer))
        self._write_stream(level, self._stage("post", layer))

    def _copy_born(self, level: int, birth: Stage) -> None:
        """Runs that are born now begin with what their base holds."""
        tokens = self.runs.tokens(self.runs.born(level, birth))
        if tokens.start < tokens.stop:
            self.own[tokens] = rows_at(self.base, self.runs.base_token[tokens])

    def _write_stream(self, level: int, at: Stage) -> None:
        """Patches of the residual stream itself, between blocks."""
        writes = self.work.writes.get((at.layer, level), {}).get(at, [])
        for place, groups in grouped(writes).items():
            for group in groups:
                to = index_tensor(group.at, self.own.device)
                if group.source is None:
                    self.own[to] = group.given_values(self.model.site(*place), self.own[None])
                else:
                    self.own[to] = self.stream(group.source)

    def stream(self, handles: Ints) -> Tensor:
        """Residual streams of tokens by their handles."""
        count = self.work.layout.tokens
        if (handles < count).all():
            return rows_at(self.base, handles)
        values = self.own.new_empty((len(handles), self.own.shape[1]))
        for is_own, table in ((False, self.base), (True, self.own)):
            mine = np.flatnonzero((handles >= count) == is_own)
            numbers = handles[mine] - (count if is_own else 0)
            values[index_tensor(mine, values.device)] = rows_at(table, numbers)
        return values

    def _advance(
        self,
        layer: int,
        rows: Rows,
        target: Tensor,
        groups: Groups | None = None,
    ) -> None:
        """Pass all tokens of whole runs; those of base runs where nothing is written."""
        is_base, wanted = groups is None, groups or {}
        source = self.base if is_base else self.own
        if len(rows.others):
            tokens = self._tokens(rows, rows.others, is_base, keys_only=True)
            self.caller.call(tokens, _at(source, rows.others), wanted)
        if len(rows.queries):
            out = self.caller.call(self._tokens(rows, rows.queries, is_base), _at(source, rows.queries), wanted)
            assert out is not None
            _put(target, rows.queries, out)
            self._note_bad(layer, rows.queries, out, is_base)

    def _computed(self, layer: int, rows: Rows, groups: Groups) -> Tensor:
        """Pass the patched tokens of runs that are born in this block, from what their bases hold."""
        numbers = self.runs.base_token[rows.queries]
        hidden = rows_at(self.base, numbers)
        tokens = replace(self._tokens(rows, rows.queries, is_base=False), born=numbers)
        out = self.caller.call(tokens, hidden, groups)
        assert out is not None
        self._note_bad(layer, rows.queries, out, is_base=False)
        return out

    def _tokens(self, rows: Rows, numbers: Ints, is_base: bool, *, keys_only: bool = False) -> Tokens:
        if self.attention is not None:
            self.attention.is_base = is_base
        if is_base:
            return Tokens(rows, numbers, numbers, numbers, keys_only)
        return Tokens(rows, numbers, numbers + self.work.layout.tokens, self.runs.given_token[numbers], keys_only)

    def _note_bad(self, layer: int, numbers: Ints, out: Tensor, is_base: bool) -> None:
        # a sum is not finite if one of its terms is not; in float32, because half precision overflows in sums
        bad = ~torch.isfinite(out.sum(-1, dtype=torch.promote_types(out.dtype, torch.float32)))
        table = self.bad_base if is_base else self.bad_own
        found = torch.where(bad, layer, self.n_layers)
        _put(table, numbers, torch.minimum(_at(table, numbers), found))


def _at(table: Tensor, numbers: Ints) -> Tensor:
    whole = _whole(numbers)
    return table[whole] if whole is not None else rows_at(table, numbers)


def _put(table: Tensor, numbers: Ints, values: Tensor) -> None:
    whole = _whole(numbers)
    if whole is not None:
        table[whole] = values
    else:
        table[index_tensor(numbers, table.device)] = values


def _whole(numbers: Ints) -> slice | None:
    """Adjacent ascending numbers as a slice, which needs no copy to read."""
    first, last = int(numbers[0]), int(numbers[-1])
    return slice(first, last + 1) if last - first + 1 == len(numbers) else None

"""One call of a block on the tokens of many runs, with what is written and kept inside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engramscope.engine.attention import KeysOnlyError, PackedAttention
from engramscope.engine.gather import gathered, gathered_rows, index_tensor
from engramscope.engine.layout import Ints
from engramscope.engine.resolve import Resolved
from engramscope.engine.shortcuts import Shortcuts, attends_as_base
from engramscope.engine.slices import Rows
from engramscope.engine.stages import Place
from engramscope.engine.values import is_pattern
from engramscope.engine.writes import Store, WriteGroup, written
from engramscope.models.hooks import output_tensor, taps
from engramscope.models.model import Model
from engramscope.models.site import SiteAccess

Groups = Mapping[Place, Sequence[WriteGroup]]
Tap = tuple[SiteAccess, Callable[[Tensor], Tensor | None]]


@dataclass(frozen=True)
class Tokens:
    """Tokens that pass a block.

    Attributes:
        rows: how they attend.
        numbers: their numbers, ascending.
        handles: their handles, ascending.
        given: the tokens of the model's own forward whose arguments they take.
        keys_only: only their keys and values are wanted.
        born: these runs begin to differ inside this block; here stand the flat tokens of their bases.
    """

    rows: Rows
    numbers: Ints
    handles: Ints
    given: Ints
    keys_only: bool = False
    born: Ints | None = None


class BlockCaller:
    """Calls the blocks of a model.

    Args:
        model: the model.
        work: what is to be done; says which places are read.
        store: where values are kept for others.
        attention: attends packed tokens; None where runs are whole rows.
        shortcuts: what need not be computed; None to compute everything.

    Attributes:
        places: what is read in the layer.
    """

    def __init__(
        self,
        model: Model,
        work: Resolved,
        store: Store,
        attention: PackedAttention | None,
        shortcuts: Shortcuts | None,
    ) -> None:
        self._model, self._work, self._store, self._attention = model, work, store, attention
        self._shortcuts = shortcuts
        self._blocks = model.blocks
        self._layer, self._total = 0, 0
        self._args: tuple[Any, ...] = ()
        self._kwargs: dict[str, Any] = {}
        self.places: list[Place] = []

    def begin_layer(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any], total: int) -> None:
        """What the model calls this block with besides the residual stream, made for `total` tokens (or rows)."""
        self._layer, self._args, self._kwargs, self._total = layer, args, kwargs, total
        self.places = [place for place in self._work.reads if self.is_in(place, layer)]

    def end_layer(self) -> None:
        """Let go of what is of no use in the next layer."""
        self._store.drop(self.places)
        self._args, self._kwargs = (), {}

    def is_in(self, place: Place, layer: int) -> bool:
        """Whether a place lies in this block."""
        return place[1] == layer if place[1] is not None else self._model.phase(place[0]) == layer

    def call(self, tokens: Tokens, hidden: Tensor, groups: Groups) -> Tensor | None:
        """The residual stream [tokens, d_model] after the block; None where only keys and values were wanted.

        Args:
            tokens: who passes.
            hidden: the residual stream before it [tokens, d_model].
            groups: what is written inside the block.
        """
        places = list(dict.fromkeys([*groups, *self.places]))
        hooked = [place for place in places if not self._is_routed(place)]
        # everything is written before anything is kept: one tensor may be a site under two names
        wanted = [self._write_tap(place, groups[place], tokens) for place in hooked if groups.get(place)]
        wanted += [self._keep_tap(place, tokens) for place in hooked if self._store.wants(place)]
        if self._attention is not None:
            pattern = next(
                (self._on_weights(place, groups, tokens) for place in places if self._is_routed(place)), None
            )
            self._attention.begin_rows(tokens.rows, tokens.numbers, keys_only=tokens.keys_only, pattern=pattern)
        shorter = nullcontext()
        if self._attention is not None and tokens.born is not None and self._shortcuts and attends_as_base(places):
            self._attention.same_as = tokens.born
            shorter = self._shortcuts.taken(self._layer, groups, places, tokens.numbers)
        args, kwargs, shaped = self._arguments(tokens, hidden)
        block = self._blocks[self._layer]
        try:
            with shorter, taps(self._model, wanted, at=block, copies=False):
                output = output_tensor(block(shaped, *args, **kwargs))
        except KeysOnlyError:
            return None
        assert output is not None, "a block returns the residual stream"
        return output.reshape(hidden.shape)

    def _arguments(self, tokens: Tokens, hidden: Tensor) -> tuple[Any, Any, Tensor]:
        both = (self._args, self._kwargs)
        if self._attention is not None:
            index = index_tensor(tokens.given, hidden.device)
            known = tokens.rows.gathered if not tokens.keys_only and not len(tokens.rows.others) else {}
            args, kwargs = gathered(both, index, self._total, known)
            return args, kwargs, hidden[None]
        length = tokens.rows.width
        index = index_tensor(tokens.given[::length] // length, hidden.device)
        args, kwargs = gathered_rows(both, index, self._total, self._model.anatomy.n_heads)
        return args, kwargs, hidden.unflatten(0, (-1, length))

    def _is_routed(self, place: Place) -> bool:
        return self._attention is not None and place[0] == "pattern"

    def _write_tap(self, place: Place, groups: Sequence[WriteGroup], tokens: Tokens) -> Tap:
        access = self._model.site(*place)
        if is_pattern(access):
            return access, self._on_weights(place, {place: groups}, tokens, keep=False)

        def tap(value: Tensor) -> Tensor | None:
            flat = value.reshape(-1, value.shape[-1])
            new = written(flat, place, groups, tokens.numbers, self._store, access)
            return None if new is None else new.view(value.shape)

        return access, tap

    def _keep_tap(self, place: Place, tokens: Tokens) -> Tap:
        access = self._model.site(*place)
        if is_pattern(access):
            return access, self._on_weights(place, {}, tokens)

        def tap(value: Tensor) -> None:
            self._store.keep(place, tokens.handles, value.reshape(-1, value.shape[-1]))

        return access, tap

    def _on_weights(
        self, place: Place, groups: Groups, tokens: Tokens, *, keep: bool = True
    ) -> Callable[[Tensor], Tensor | None]:
        access, rows = self._model.site(*place), tokens.rows

        def tap(weights: Tensor) -> Tensor | None:
            by_query = weights.transpose(1, 2).flatten(0, 1)  # [rows * queries, heads, keys]
            flat = by_query if rows.even else by_query.index_select(0, rows.grid)
            new = written(flat, place, groups.get(place, ()), tokens.numbers, self._store, access)
            if keep and self._store.wants(place):
                kept = flat if new is None else new
                missing = self._work.layout.longest - kept.shape[2]
                self._store.keep(place, tokens.handles, torch.nn.functional.pad(kept, (0, missing)))
            if new is None:
                return None
            if not rows.even:
                by_query = by_query.clone()
                by_query[rows.grid] = new
                new = by_query
            # contiguous, because some architectures go on to `view` it
            return new.unflatten(0, (rows.count, rows.width)).transpose(1, 2).contiguous()

        return tap

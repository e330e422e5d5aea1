"""Attention over rows of different lengths whose beginnings are shared: no padding of tokens, no loop over runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engramscope.engine.gather import index_tensor
from engramscope.engine.layout import Ints
from engramscope.engine.slices import Rows
from engramscope.models.families._base import AttentionRoute
from engramscope.models.interface import repeat_heads

#: weights [rows, n_heads, queries, keys] -> other weights, or None where nothing changes
PatternFn = Callable[[Tensor], Tensor | None]


class KeysOnlyError(Exception):
    """Raised inside an attention module once its keys and values are known, where nothing else of it is needed."""


class PackedAttention:
    """Answers the attention modules of one layer after the other, for the rows that are being computed.

    Attributes:
        rows: whose tokens pass the block now.
        is_base: they are tokens of base runs, whose keys and values all others look at.
        keys_only: stop when keys and values are known.
        pattern: reads and replaces the weights.
        mask: added to the scores [longest, longest].
    """

    def __init__(self, route: AttentionRoute) -> None:
        self.route = route
        self.rows: Rows | None = None
        self.is_base, self.keys_only = True, False
        self.numbers: Ints = np.zeros(0, np.int64)
        self.pattern: PatternFn | None = None
        self.mask: Tensor | None = None
        self.tokens = 0
        self._tables: dict[int, Tensor] = {}
        self._local: dict[int, Tensor] = {}

    def begin_layer(self, mask: Tensor, tokens: int) -> None:
        """Forget the layer before.

        Args:
            mask: of a plain run in this layer.
            tokens: number of flat tokens.
        """
        self.mask, self.tokens, self._tables, self._local = mask, tokens, {}, {}

    def begin_rows(self, rows: Rows, numbers: Ints, *, keys_only: bool, pattern: PatternFn | None) -> None:
        """The next call is about these tokens of these rows."""
        if rows is not self.rows:
            self._local = {}
        self.rows, self.numbers, self.keys_only, self.pattern = rows, numbers, keys_only, pattern

    def end(self) -> None:
        """Let go of all tensors."""
        self.rows = self.pattern = self.mask = None
        self._tables, self._local = {}, {}

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, args: tuple[Any, ...], kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """A `Router`: tensors [1, heads, tokens, d_head] of the packed tokens."""
        rows = self.rows
        assert rows is not None
        assert self.mask is not None
        keys, values = self._keys(key, 0, rows), self._keys(value, 1, rows)
        if keys is None or values is None:
            raise KeysOnlyError
        output, weights = self.route.attend(
            module, self._queries(query, rows), keys, values, self._mask(self.mask, query.dtype, rows), args, kwargs
        )
        new = None if self.pattern is None else self.pattern(weights)
        if new is not None:
            output = (new @ repeat_heads(values, new.shape[1])).transpose(1, 2)
        flat = output.reshape(rows.count * rows.width, *output.shape[2:])
        return (flat if rows.even else flat[rows.grid])[None], None

    def _queries(self, query: Tensor, rows: Rows) -> Tensor:
        flat = query[0] if rows.even else query[0][:, rows.spread]
        return flat.unflatten(1, (rows.count, rows.width)).transpose(0, 1)

    def _keys(self, new: Tensor, which: int, rows: Rows) -> Tensor | None:
        """Keys (or values) [rows, n_kv_heads, keys, d_head] of all rows; None where they are only to be kept."""
        by_token = new[0].transpose(0, 1)  # [tokens, heads, d_head]
        table, own = self._base_table(by_token, which), None
        if self.is_base:
            table[index_tensor(self.numbers, table.device)] = by_token
        else:
            own = self._own_table(by_token, which, rows)
        if self.keys_only:
            return None
        if own is not None and rows.shared_start is not None:
            head = table[rows.prefix].unflatten(0, (rows.count, rows.shared_start))
            found = torch.cat([head, own.unflatten(0, (rows.count, -1))], dim=1)
        else:
            flat = table[rows.all_keys]
            if own is not None and rows.own_places is not None:
                flat[rows.own_places] = own
            found = flat.unflatten(0, (rows.count, rows.keys))
        return found.transpose(1, 2)

    def _base_table(self, like: Tensor, which: int) -> Tensor:
        """Keys (or values) of the flat tokens in this layer [tokens, heads, d_head]."""
        if which not in self._tables:
            self._tables[which] = like.new_zeros((self.tokens, *like.shape[1:]))
        return self._tables[which]

    def _own_table(self, new: Tensor, which: int, rows: Rows) -> Tensor | None:
        """Keys (or values) of the rows' own tokens, in the order of their positions; None where none are looked at."""
        if rows.own_places is None:
            return None
        if rows.local is None:
            return new
        if which not in self._local:
            self._local[which] = new.new_zeros((len(rows.others) + len(rows.queries), *new.shape[1:]))
        self._local[which][rows.local[0 if self.keys_only else 1]] = new
        return self._local[which]

    def _mask(self, mask: Tensor, dtype: torch.dtype, rows: Rows) -> Tensor:
        """What is added to the scores [rows or 1, 1, queries, keys]."""
        if rows.span is not None:
            return mask[rows.span[0] : rows.span[1], : rows.keys][None, None].to(dtype)
        return mask[rows.padded_positions][:, None, :, : rows.keys].to(dtype)

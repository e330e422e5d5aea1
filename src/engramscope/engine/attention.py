"""Attention over rows of different lengths whose beginnings are shared: no padding of tokens, no loop over runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from engramscope.engine.gather import index_tensor, rows_at
from engramscope.engine.layout import Ints
from engramscope.engine.slices import Rows
from engramscope.models.families._base import AttentionRoute
from engramscope.models.interface import repeat_heads

#: weights [rows, n_heads, queries, keys] -> other weights, or None where nothing changes
PatternFn = Callable[[Tensor], Tensor | None]


#: tables of the base tokens in a layer, beside keys (0) and values (1): what their attention gives
_OUTPUT = 2


class KeysOnlyError(Exception):
    """Raised inside an attention module once its keys and values are known, where nothing else of it is needed."""


def plain_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """`softmax(scaling q kᵀ + mask) v` by torch's kernel, which keeps no weights.

    Args:
        query: [rows, n_heads, queries, d_head].
        key, value: [rows, n_kv_heads, keys, d_head].
        mask: [rows or 1, 1, queries, keys].
        scaling: of the scores.

    Returns:
        [rows, queries, n_heads, d_head].
    """
    groups = query.shape[1] // key.shape[1]
    if groups == 1:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling).transpose(1, 2)
    # the query heads of a group are queries of one head, so that keys and values need not be repeated
    folded = query.unflatten(1, (key.shape[1], groups)).flatten(2, 3)
    out = scaled_dot_product_attention(folded, key, value, attn_mask=mask.repeat(1, 1, groups, 1), scale=scaling)
    return out.unflatten(2, (groups, query.shape[2])).flatten(1, 2).transpose(1, 2)


def _fill_prefix(found: Tensor, table: Tensor, rows: Rows, start: int) -> None:
    """What comes before the own keys: runs of one base stand side by side, so that most of it is read only once."""
    if start == 0:
        return
    if rows.repeats is None:
        found[:, :start] = table.index_select(0, rows.prefix).unflatten(0, (rows.count, start))
    else:
        head = table.index_select(0, rows.prefix).unflatten(0, (-1, start))
        found.unflatten(0, (-1, rows.repeats))[:, :, :start] = head[:, None]


def _scaling(kwargs: Mapping[str, Any], query: Tensor) -> float:
    scaling = kwargs.get("scaling")
    return query.shape[-1] ** -0.5 if scaling is None else float(scaling)


class PackedAttention:
    """Answers the attention modules of one layer after the other, for the rows that are being computed.

    Attributes:
        rows: whose tokens pass the block now.
        is_base: they are tokens of base runs, whose keys and values all others look at.
        keys_only: stop when keys and values are known.
        same_as: flat tokens whose attention these tokens share, so that nothing is computed.
        keep_output: keep what the attention of base tokens gives, for `same_as`.
        pattern: reads and replaces the weights.
        mask: added to the scores [longest, longest].
        differs: with `compare`, by how much the architecture's attention differed from the plain one at most.

    Args:
        route: hands over queries, keys and values, and knows the architecture's own attention.
        plain: `softmax(scaling q kᵀ + mask) v` is all that the architecture does, so that torch's kernel will do.
        compare: find out whether that is so.
    """

    def __init__(self, route: AttentionRoute, *, plain: bool = False, compare: bool = False) -> None:
        self.route, self.plain, self.compare = route, plain, compare
        self.differs = 0.0
        self.rows: Rows | None = None
        self.is_base, self.keys_only = True, False
        self.numbers: Ints = np.zeros(0, np.int64)
        self.same_as: Ints | None = None
        self.keep_output = False
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
        self.same_as = None

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
        if self.same_as is not None:
            return rows_at(self._tables[_OUTPUT], self.same_as)[None], None
        keys, values = self._keys(key, 0, rows), self._keys(value, 1, rows)
        if keys is None or values is None:
            raise KeysOnlyError
        queries, mask = self._queries(query, rows), self._mask(self.mask, query.dtype, rows)
        if self.plain and self.pattern is None:
            output = plain_attention(queries, keys, values, mask, _scaling(kwargs, queries))
        else:
            output, weights = self.route.attend(module, queries, keys, values, mask, args, kwargs)
            new = None if self.pattern is None else self.pattern(weights)
            if new is not None:
                output = (new @ repeat_heads(values, new.shape[1])).transpose(1, 2)
        if self.compare:
            self._compare(module, queries, keys, values, mask, args, kwargs)
        flat = output.reshape(rows.count * rows.width, *output.shape[2:])
        flat = flat if rows.even else flat.index_select(0, rows.grid)
        if self.is_base and self.keep_output:
            self._base_table(flat, _OUTPUT)[index_tensor(self.numbers, flat.device)] = flat
        return flat[None], None

    def _compare(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, args: Any, kwargs: Any
    ) -> None:
        """Large scores, because a cap or a sink hardly shows in small ones."""
        size = (query.abs().amax() * key.abs().amax()).sqrt().clamp(min=torch.finfo(query.dtype).tiny)
        query, key = 4 * query / size, 4 * key / size
        theirs, _ = self.route.attend(module, query, key, value, mask, args, kwargs)
        ours = plain_attention(query, key, value, mask, _scaling(kwargs, query))
        difference = float((ours - theirs).abs().amax() / value.abs().amax())
        self.differs = max(self.differs, difference if difference == difference else float("inf"))

    def _queries(self, query: Tensor, rows: Rows) -> Tensor:
        by_token = query[0].transpose(0, 1)  # [tokens, heads, d_head]
        flat = by_token if rows.even else by_token.index_select(0, rows.spread)
        return flat.unflatten(0, (rows.count, rows.width)).transpose(1, 2)

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
            found = new.new_empty((rows.count, rows.keys, *by_token.shape[1:]))
            _fill_prefix(found, table, rows, rows.shared_start)
            found[:, rows.shared_start :] = own.unflatten(0, (rows.count, -1))
        else:
            flat = table.index_select(0, rows.all_keys)
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

"""What is written into derived runs at a place, and what is kept there for runs that read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engramscope.engine.gather import rows_at
from engramscope.engine.layout import Ints
from engramscope.engine.resolve import Write
from engramscope.engine.stages import Place
from engramscope.engine.values import columns_of, constant_rows
from engramscope.models.site import SiteAccess


@dataclass
class WriteGroup:
    """Writes at one place that are done at once: equal heads, equal turn, all from runs or all given.

    Attributes:
        heads: which heads; None for all.
        at: numbers of the written tokens, ascending.
        source: handles that the values come from, in the same order; None where they are given.
        given: (values, row of each written token) where they are given.
    """

    heads: tuple[int, ...] | None
    at: Ints
    source: Ints | None
    given: list[tuple[Tensor, Ints]]

    def __post_init__(self) -> None:
        self._given: Tensor | None = None
        order = np.argsort(self.at, kind="stable")
        self._order, self.at = order, self.at[order]
        self.source = None if self.source is None else self.source[order]

    def within(self, tokens: Ints) -> tuple[Ints, Ints]:
        """Rows of `tokens` (ascending numbers) that are written, and which of this group's writes they are."""
        if not len(tokens):
            return tokens, tokens
        low, high = np.searchsorted(self.at, [tokens[0], tokens[-1] + 1])
        mine = self.at[low:high]
        rows = np.searchsorted(tokens, mine)
        hit = tokens[np.minimum(rows, len(tokens) - 1)] == mine
        return rows[hit], np.flatnonzero(hit) + low

    def given_values(self, access: SiteAccess, like: Tensor) -> Tensor:
        """The given values of all writes of the group [writes, columns], or [writes, heads, keys] for a pattern."""
        # attention weights have as many keys as the slice that they are for
        if self._given is None or self._given.shape[2:] != like.shape[3:]:
            parts = [_given_rows(values, own, access, self.heads, like) for values, own in self.given]
            self._given = rows_at(torch.cat(parts), self._order)
        return self._given


def _given_rows(values: Tensor, own: Ints, access: SiteAccess, heads: tuple[int, ...] | None, like: Tensor) -> Tensor:
    """Given values of some positions of one patch: row `own[i]` of the patch's values, or their only row."""
    if values.ndim and values.shape[0] > 1:
        values = rows_at(values, own)
    return constant_rows(values.to(like), access, heads, len(own), like)


def grouped(writes: Sequence[Write]) -> dict[Place, list[WriteGroup]]:
    """Writes by place, those of a run in their order."""
    found: dict[tuple[Place, int, tuple[int, ...] | None, bool], list[Write]] = {}
    for write in writes:
        found.setdefault((write.place, write.turn, write.heads, write.source is None), []).append(write)
    groups: dict[Place, list[WriteGroup]] = {}
    for (place, _, heads, is_given), members in sorted(found.items(), key=lambda item: item[0][1]):
        at = np.concatenate([write.at for write in members])
        given = [(write.constant, write.own) for write in members if write.constant is not None]
        sources = [write.source for write in members if write.source is not None]
        groups.setdefault(place, []).append(WriteGroup(heads, at, None if is_given else np.concatenate(sources), given))
    return groups


class Store:
    """Values at places of the layer that is being computed, for the handles that somebody reads.

    Args:
        reads: place -> handles, ascending.
    """

    def __init__(self, reads: Mapping[Place, Ints]) -> None:
        self._reads = reads
        self._values: dict[Place, Tensor] = {}

    def wants(self, place: Place) -> bool:
        """Whether anything is read at this place."""
        return place in self._reads

    def keep(self, place: Place, handles: Ints, value: Tensor) -> None:
        """Keep what is read of `value`, whose rows are these handles (ascending)."""
        wanted = self._reads[place]
        low, high = np.searchsorted(wanted, [handles[0], handles[-1] + 1])
        mine = wanted[low:high]
        rows = np.searchsorted(handles, mine)
        hit = handles[np.minimum(rows, len(handles) - 1)] == mine
        if not hit.any():
            return
        if place not in self._values:
            self._values[place] = value.new_zeros((len(wanted), *value.shape[1:]))
        to = torch.from_numpy(np.flatnonzero(hit) + low).to(value.device)
        self._values[place][to] = rows_at(value, rows[hit])

    def read(self, place: Place, handles: Ints, device: torch.device) -> Tensor:
        """What was kept for these handles."""
        at = np.searchsorted(self._reads[place], handles)
        return rows_at(self._values[place], at).to(device)

    def drop(self, layer_places: Sequence[Place]) -> None:
        """Forget these places."""
        for place in layer_places:
            self._values.pop(place, None)


def written(
    flat: Tensor, place: Place, groups: Sequence[WriteGroup], tokens: Ints, store: Store, access: SiteAccess
) -> Tensor | None:
    """`flat` with everything written that these groups say; None where they say nothing.

    Args:
        flat: [tokens, width], or [tokens, n_heads, keys] for a pattern; left as it is.
        place: where.
        groups: writes, in their order.
        tokens: numbers of the tokens of `flat`, ascending.
        store: where values of other runs were kept.
        access: where heads lie.
    """
    new: Tensor | None = None
    for group in groups:
        rows, which = group.within(tokens)
        if not len(rows):
            continue
        new = flat.clone() if new is None else new
        to = torch.from_numpy(rows).to(flat.device)
        pattern = flat.ndim == 3
        if group.source is None:
            values = group.given_values(access, flat[None].transpose(1, 2) if pattern else flat[None])
            values = rows_at(values, which)
        else:
            values = _columns(store.read(place, group.source[which], flat.device), access, group.heads, pattern)
            values = values[..., : flat.shape[2]] if pattern else values
        _put(new, to, access, group.heads, values.to(new), pattern)
    return new


def _columns(value: Tensor, access: SiteAccess, heads: tuple[int, ...] | None, pattern: bool) -> Tensor:
    if pattern:
        return value if heads is None else value[:, list(heads)]
    columns = columns_of(access, heads)
    return value if columns is None else value[:, columns.to(value.device)]


def _put(
    new: Tensor, rows: Tensor, access: SiteAccess, heads: tuple[int, ...] | None, values: Tensor, pattern: bool
) -> None:
    if pattern:
        if heads is None:
            new[rows] = values
        else:
            new[rows[:, None], torch.tensor(heads, device=new.device)[None]] = values
        return
    columns = columns_of(access, heads)
    if columns is None:
        new[rows] = values
    else:
        new[rows[:, None], columns.to(new.device)[None]] = values

"""Before the first block: the tokens that the model is given, noise on their embeddings, and patches there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from engramscope.engine.gather import index_tensor
from engramscope.engine.index import RunIndex
from engramscope.engine.layout import Ints
from engramscope.engine.resolve import Resolved, Write
from engramscope.engine.stages import Place
from engramscope.engine.writes import WriteGroup
from engramscope.models.model import Model
from engramscope.models.site import SiteAccess

Tap = tuple[SiteAccess, Callable[[Tensor], Tensor | None]]


def stem_index(work: Resolved, runs: RunIndex) -> Ints:
    """Flat tokens that the model is given: those of the base runs, then again those that runs born here stand for."""
    return np.concatenate([np.arange(work.layout.tokens), runs.base_token[runs.stem]])


def stem_taps(model: Model, work: Resolved, runs: RunIndex) -> list[Tap]:
    """What is to be done while the model embeds the tokens of `stem_index`."""
    wanted: list[Tap] = []
    if work.layout.noise:
        wanted.append((model.site("embed", None), _noise_tap(work, stem_index(work, runs))))
    by_place: dict[Place, list[Write]] = {}
    for level in range(1, work.levels + 1):
        for writes in work.writes.get((-1, level), {}).values():
            for write in writes:
                by_place.setdefault(write.place, []).append(write)
    for place, writes in by_place.items():
        wanted.append((model.site(*place), _write_tap(model.site(*place), writes, work, runs)))
    return wanted


def _noise_tap(work: Resolved, index: Ints) -> Callable[[Tensor], Tensor]:
    # the copies of a noised token are noised, too
    rows, values = [], []
    order = np.argsort(index, kind="stable")
    for tokens, noise in work.layout.noise:
        low = np.searchsorted(index, tokens, sorter=order)
        high = np.searchsorted(index, tokens, sorter=order, side="right")
        for number in range(len(tokens)):
            found = order[low[number] : high[number]]
            rows.append(found)
            values.append(noise[number].expand(len(found), -1))
    every, added = np.concatenate(rows), torch.cat(values)

    def add(value: Tensor) -> Tensor:
        flat = value.reshape(-1, value.shape[-1]).clone()
        wide = torch.promote_types(value.dtype, torch.float32)  # 16-bit numbers are not rounded twice
        at = index_tensor(every, value.device)
        flat[at] = (flat[at].to(wide) + added.to(value.device, wide)).to(value.dtype)
        return flat.view(value.shape)

    return add


def _write_tap(
    access: SiteAccess, writes: Sequence[Write], work: Resolved, runs: RunIndex
) -> Callable[[Tensor], Tensor]:
    count = work.layout.tokens

    def rows_of(handles: Ints) -> Ints:
        """Rows of the model's own tokens: derived ones come after those of the base runs."""
        return np.where(handles < count, handles, count + np.searchsorted(runs.stem, handles - count))

    def write(value: Tensor) -> Tensor:
        flat = value.reshape(-1, value.shape[-1]).clone()
        for one in writes:  # by level and turn, so that a run is written before it is read
            if one.source is None:
                assert one.constant is not None
                group = WriteGroup(one.heads, one.at, None, [(one.constant, one.own)])
                to = index_tensor(rows_of(group.at + count), value.device)
                flat[to] = group.given_values(access, flat[None])
            else:
                to = index_tensor(rows_of(one.at + count), value.device)
                flat[to] = flat[index_tensor(rows_of(one.source), value.device)]
        return flat.view(value.shape)

    return write

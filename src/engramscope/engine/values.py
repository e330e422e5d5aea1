"""Reading heads and positions out of a tapped value, and putting others in their place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engramscope.models.site import AttentionPattern, Port, SiteAccess


def is_pattern(access: SiteAccess) -> bool:
    """Whether the value is attention weights [batch, n_heads, query, key] rather than [batch, seq, width]."""
    return isinstance(access, AttentionPattern)


def columns_of(access: SiteAccess, heads: Sequence[int] | None) -> Tensor | None:
    """Feature columns of these heads, int64 [len(heads) * d_head]; None where the whole width is meant."""
    head_columns = access.head_columns if isinstance(access, Port) else None
    if head_columns is None:
        return None
    chosen = head_columns if heads is None else head_columns[list(heads)]
    return chosen.reshape(-1)


def rows_at(value: Tensor, access: SiteAccess, heads: Sequence[int] | None, positions: Sequence[int]) -> Tensor:
    """What a patch copies from one run's recorded value.

    Args:
        value: [seq, width], or [n_heads, query, key] for a pattern.
        access: where it was read.
        heads: heads to copy; None for all.
        positions: positions (query positions for a pattern) to copy.

    Returns:
        [len(positions), columns], or [len(positions), heads, key] for a pattern.
    """
    index = torch.as_tensor(positions, device=value.device)
    if is_pattern(access):
        chosen = value if heads is None else value[list(heads)]
        return chosen[:, index].transpose(0, 1)
    columns = columns_of(access, heads)
    rows = value[index]
    return rows if columns is None else rows[:, columns.to(value.device)]


def constant_rows(given: Tensor, access: SiteAccess, heads: Sequence[int] | None, count: int, like: Tensor) -> Tensor:
    """What a patch with given values writes: the same layout as `rows_at`.

    Args:
        given: [count or 1, width] or zero-dimensional; for a pattern [count or 1, n_heads, key]. Where it has fewer
            keys than the run has (a mean over prompts, and a run continued by an answer) the later ones get 0: no
            position of the prompt looks at what comes after it.
        access: where it will be written.
        heads: heads to write; None for all.
        count: number of patched positions.
        like: the tapped value [batch, seq, width] or [batch, n_heads, query, key].
    """
    if is_pattern(access):
        if given.ndim == 3:
            given = torch.nn.functional.pad(given, (0, like.shape[3] - given.shape[2]))
        full = given.expand(count, like.shape[1], like.shape[3])
        return full if heads is None else full[:, list(heads)]
    full = given.expand(count, like.shape[2])
    columns = columns_of(access, heads)
    return full if columns is None else full[:, columns.to(like.device)]


def write_at(
    value: Tensor, access: SiteAccess, heads: Sequence[int] | None, rows: Tensor, positions: Tensor, new: Tensor
) -> None:
    """Replace some rows and positions of a value, in place.

    Args:
        value: [batch, seq, width], or [batch, n_heads, query, key] for a pattern; the caller's own copy.
        access: where it was tapped.
        heads: heads to replace; None for all.
        rows: int64 [n], batch row of each replaced position.
        positions: int64 [n].
        new: [n, columns], or [n, heads, key] for a pattern.
    """
    new = new.to(value)
    if is_pattern(access):
        chosen = torch.arange(value.shape[1]) if heads is None else torch.as_tensor(heads)
        value[rows[:, None], chosen.to(value.device)[None, :], positions[:, None]] = new
        return
    columns = columns_of(access, heads)
    if columns is None:
        value[rows, positions] = new
    else:
        value[rows[:, None], positions[:, None], columns.to(value.device)[None, :]] = new

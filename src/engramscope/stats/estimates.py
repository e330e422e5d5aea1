"""Point estimates per cell: recovery, effect, effect size, agreement, spread.

Shapes: `patched [n_pairs, n_cells]`, `clean [n_pairs]`, `corrupted [n_pairs]`. `NaN` in a cell says that the
pair has no such cell; it is left out, and a cell that no pair has is `NaN` in every estimate.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engramscope.stats.clusters import Floats, as_cells, as_pairs

Direction = Literal["denoise", "noise"]


def recovery(patched: ArrayLike, clean: ArrayLike, corrupted: ArrayLike) -> Floats:
    """Share of the clean-corrupted gap that a patch restores, value by value.

    `recovery = (patched - corrupted) / (clean - corrupted)`, broadcast over the three arguments.

    Args:
        patched: Metric of the patched run.
        clean: Metric of the clean run.
        corrupted: Metric of the corrupted run.

    Returns:
        Recovery, without unit: 0 = as corrupted, 1 = as clean, in both directions. It can leave [0, 1].
        `NaN` where the gap is exactly 0.

    Source: Zhang & Nanda, arXiv 2309.16042, §2.1 (normalised logit difference); CLAP, arXiv 2504.02976,
        "recovery". Deviation: two of the figures printed in CLAP's tables do not follow from its own logit
        differences and are not reproduced (0.70 is printed as 56 %, 0.864 as 13.6 %).
    """
    a, b, c = (np.asarray(x, dtype=np.float64) for x in (patched, clean, corrupted))
    gap = b - c
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(gap == 0.0, np.nan, (a - c) / gap)


def effects(patched: ArrayLike, clean: ArrayLike, corrupted: ArrayLike | None, direction: Direction) -> Floats:
    """Signed change of the metric against the run that was patched.

    `denoise`: `patched - corrupted`; `noise`: `patched - clean`.

    Args:
        patched: `[n_pairs, n_cells]`.
        clean: `[n_pairs]`.
        corrupted: `[n_pairs]`; may be `None` for `noise` (an ablation has no corrupted run).
        direction: Which run was patched.

    Returns:
        `[n_pairs, n_cells]` in units of the metric; positive = the patch raised the metric.

    Raises:
        ValueError: If `denoise` is asked for without a corrupted run, or a shape does not fit.
    """
    cells = as_cells(patched, "patched")
    if direction == "noise":
        return cells - as_pairs(clean, len(cells), "clean")[:, None]
    if direction != "denoise":
        raise ValueError(f"direction must be 'denoise' or 'noise', got {direction!r}")
    if corrupted is None:
        raise ValueError("direction 'denoise' needs the metric of the corrupted run")
    return cells - as_pairs(corrupted, len(cells), "corrupted")[:, None]


def pair_counts(effect: ArrayLike) -> NDArray[np.int64]:
    """Number of pairs that have the cell, `[n_cells]`."""
    return np.count_nonzero(~np.isnan(as_cells(effect, "effect")), axis=0).astype(np.int64)


def mean_effect(effect: ArrayLike) -> Floats:
    """Mean over the pairs that have the cell, `[n_cells]`, in units of the metric; `NaN` where none has it."""
    cells = as_cells(effect, "effect")
    return _divide(np.nansum(cells, axis=0), pair_counts(cells))


def ratio_of_means(effect: ArrayLike, gap: ArrayLike) -> Floats:
    """Pooled ratio per cell, `sum_i effect[i, c] / sum_i gap[i]` over the pairs `i` that have the cell.

    For `denoise` this is the pooled recovery; for `noise` the pooled recovery is one plus it.

    Args:
        effect: `[n_pairs, n_cells]`.
        gap: `clean - corrupted` `[n_pairs]`.

    Returns:
        `[n_cells]`, without unit. `NaN` where no pair has the cell or the pooled gap is exactly 0. Where the
        pooled gap is near 0 or negative the value is not a share of anything: leave pairs whose gap is tiny or
        of the wrong sign out of `effect` and `gap` first.

    Source: Miller et al., arXiv 2407.08734, on the order of averaging. The mean of per-pair ratios has no
        finite mean when gaps come near 0 and is not offered.
    """
    cells = as_cells(effect, "effect")
    gaps = as_pairs(gap, len(cells), "gap")
    present = ~np.isnan(cells)
    return _divide(np.nansum(cells, axis=0), gaps @ present)


def cohen_dz(effect: ArrayLike) -> Floats:
    """Standardised mean effect over pairs, `mean / sd` with `ddof = 1`, `[n_cells]`.

    Returns:
        In standard deviations between pairs, sign of the mean. `NaN` with fewer than two pairs or no spread.
        Clusters play no part: it describes pairs, and is no test.
    """
    cells = as_cells(effect, "effect")
    n = pair_counts(cells)
    mean = mean_effect(cells)
    squares = np.nansum((cells - np.where(np.isnan(mean), 0.0, mean)) ** 2, axis=0)
    sd = np.sqrt(_divide(squares, np.maximum(n - 1, 0)))
    scale = np.nanmax(np.abs(np.where(np.isnan(cells), 0.0, cells)), axis=0)
    return _divide(mean, np.where(sd > 1e-12 * scale, sd, 0.0))


def same_sign_share(effect: ArrayLike) -> Floats:
    """Share of pairs whose effect has the sign of the mean effect, `[n_cells]`, in [0, 1].

    An effect of exactly 0 agrees with no sign. `NaN` where no pair has the cell.
    """
    cells = as_cells(effect, "effect")
    sign = np.sign(mean_effect(cells))
    agree = (np.sign(cells) == sign) & (cells != 0.0)
    return _divide(np.count_nonzero(agree, axis=0), pair_counts(cells))


def interquartile_range(effect: ArrayLike) -> Floats:
    """Distance between the quartiles over pairs, `[n_cells]`, in units of the metric, never negative."""
    cells = as_cells(effect, "effect")
    out = np.full(cells.shape[1], np.nan)
    some = pair_counts(cells) > 0
    if some.any():
        quartiles = np.nanquantile(cells[:, some], [0.25, 0.75], axis=0)
        out[some] = quartiles[1] - quartiles[0]
    return out


def _divide(top: ArrayLike, bottom: ArrayLike) -> Floats:
    """`top / bottom`, `NaN` where the bottom is 0 or `NaN`."""
    a, b = np.asarray(top, dtype=np.float64), np.asarray(bottom, dtype=np.float64)
    out = np.full(np.broadcast_shapes(a.shape, b.shape), np.nan)
    np.divide(a, b, out=out, where=(b != 0.0) & ~np.isnan(b))
    return out

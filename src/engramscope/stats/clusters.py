"""Pairs to clusters: the unit that is resampled, flipped and counted.

Pairs of one cluster (a template, a subject, both orders of a swapped pair) are not independent of one
another. Every routine of this package therefore works on *cluster totals* `[n_clusters, n_cells]`: a
bootstrap draw is then a row of weights times this matrix, a sign flip a row of ±1 times this matrix.

A `NaN` in `[n_pairs, n_cells]` says that this pair has no such cell. It adds nothing to a total.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Indices = NDArray[np.intp]

BLOCK_BYTES = 32 * 2**20  # size of one working block; a routine holds a handful of them at a time


def as_cells(values: ArrayLike, name: str) -> Floats:
    """Checks `[n_pairs, n_cells]` values: two axes, `NaN` for a missing cell, nothing infinite.

    Args:
        values: One number per pair and cell.
        name: What to call them in a message.

    Returns:
        The values as float64.

    Raises:
        ValueError: If there are not two axes, no pair at all, or an infinite value.
    """
    cells = np.asarray(values, dtype=np.float64)
    if cells.ndim != 2:
        raise ValueError(f"{name} must have the axes [n_pairs, n_cells], got the shape {cells.shape}")
    if cells.shape[0] == 0:
        raise ValueError(f"{name} holds no pair")
    infinite = np.argwhere(np.isinf(cells))
    if infinite.size:
        pair, cell = infinite[0]
        raise ValueError(
            f"{name} is infinite in {len(infinite)} places, first at pair {pair}, cell {cell}: "
            "a failed value must be NaN"
        )
    return cells


def as_pairs(values: ArrayLike, n_pairs: int, name: str) -> Floats:
    """Checks `[n_pairs]` values: one finite number per pair.

    Raises:
        ValueError: If the length is another, or a value is not finite.
    """
    pairs = np.asarray(values, dtype=np.float64)
    if pairs.shape != (n_pairs,):
        raise ValueError(f"{name} must have one value for each of {n_pairs} pairs, got the shape {pairs.shape}")
    bad = np.flatnonzero(~np.isfinite(pairs))
    if bad.size:
        raise ValueError(f"{name} is not finite for {bad.size} pairs, first for pair {bad[0]}: leave them out")
    return pairs


def as_mask(values: ArrayLike | None, length: int, name: str, *, default: bool) -> Bools:
    """Checks a mask of the given length; `None` is the default everywhere.

    Raises:
        ValueError: If the length is another or the values are not booleans.
    """
    if values is None:
        return np.full(length, default)
    mask = np.asarray(values)
    if mask.shape != (length,) or mask.dtype != np.bool_:
        raise ValueError(f"{name} must be {length} booleans, got {mask.dtype} of the shape {mask.shape}")
    return mask


def cluster_index(clusters: ArrayLike, n_pairs: int) -> tuple[Indices, int]:
    """Numbers the clusters from 0.

    Args:
        clusters: Labels `[n_pairs]` of any kind that can be sorted (strings, integers).
        n_pairs: How many are expected.

    Returns:
        The number of its cluster for each pair `[n_pairs]`, and how many clusters there are.

    Raises:
        ValueError: If there is not one label for each pair, or a label is `NaN`.
    """
    labels = np.asarray(clusters)
    if labels.shape != (n_pairs,):
        raise ValueError(f"clusters must have one label for each of {n_pairs} pairs, got the shape {labels.shape}")
    if labels.dtype.kind == "f" and np.isnan(labels).any():
        raise ValueError("clusters holds NaN: every pair needs a cluster, if only its own")
    found, index = np.unique(labels, return_inverse=True)
    return index.astype(np.intp).reshape(n_pairs), len(found)


def cluster_totals(values: Floats, index: Indices, n_clusters: int) -> Floats:
    """Sums over the pairs of each cluster, `total[k, c] = sum_{i in k} value[i, c]`, NaN adding nothing.

    Args:
        values: `[n_pairs, n_cells]`.
        index: Cluster of each pair `[n_pairs]`.
        n_clusters: Number of clusters.

    Returns:
        `[n_clusters, n_cells]`.
    """
    filled = np.where(np.isnan(values), 0.0, values)
    n_pairs = len(index)
    member = sparse.csr_array((np.ones(n_pairs), (index, np.arange(n_pairs))), shape=(n_clusters, n_pairs))
    return np.asarray(member @ filled, dtype=np.float64)


def presence_patterns(present: Bools) -> tuple[Bools, Indices]:
    """Finds the few different columns of a presence mask: most cells are missing for the same pairs.

    Args:
        present: `[n_rows, n_cells]`.

    Returns:
        The distinct columns `[n_rows, n_patterns]` and, for each cell, which of them is its own.
    """
    n_rows, n_cells = present.shape
    if n_cells == 0 or bool(present.all()):
        return np.ones((n_rows, 1), dtype=np.bool_), np.zeros(n_cells, dtype=np.intp)
    packed = np.packbits(present, axis=0)
    _, first, pattern = np.unique(packed, axis=1, return_index=True, return_inverse=True)
    return present[:, first], pattern.astype(np.intp).reshape(n_cells)


def clusters_per_cell(present: Bools, index: Indices, n_clusters: int) -> NDArray[np.int64]:
    """Counts, per cell, the clusters with at least one pair that has the cell.

    Args:
        present: `[n_pairs, n_cells]`.
        index: Cluster of each pair `[n_pairs]`.
        n_clusters: Number of clusters.

    Returns:
        `[n_cells]`.
    """
    patterns, pattern = presence_patterns(present)
    counts = cluster_totals(patterns.astype(np.float64), index, n_clusters)
    return np.count_nonzero(counts, axis=0)[pattern].astype(np.int64)


def block_length(bytes_per_item: int) -> int:
    """How many items of this size fit into one working block; at least one."""
    return max(1, BLOCK_BYTES // max(1, bytes_per_item))

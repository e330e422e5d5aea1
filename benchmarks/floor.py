"""The floor: the floating-point operations that a sweep cannot avoid, whatever program computes it.

Only matrix products are counted, two operations per multiply-add: no norms, no softmax, no activation functions, no
copies. So the floor is below what any program can reach; the share `floor / measured` says how much is left to gain.

What is counted. A run is a graph of values, one for each layer and token (and head):

    pre -> q, k, v -> scores -> z -> attn_out -> mid -> mlp_out -> post -> (next layer) ... -> logits

A patched run is derived from its base run. A value is computed for it only if it is both
* *changed*: it can differ from the base run's, because a patched value differs there, or something that it is computed
  from is changed;
* and *needed*: it reaches the logits that are read, not counting paths that a patch cuts.

Everything else is taken from the base run or never looked at. In detail, with `d` the width, `e` the width of a head:

| product | multiply-adds | counted for |
|---|---|---|
| queries | d · e | every (token, head) whose input is changed and whose z is needed |
| keys, values | 2 · d · e | every (token, head) whose input is changed and which a needed z looks at |
| scores | e per key | every needed, changed z: all visible keys where its query is changed, else the changed keys |
| z | e per key | every needed, changed z: all visible keys (the softmax moves all weights) |
| output projection | e · d | every (token, head) whose z is changed: of a patched head only its rows of the matrix |
| MLP | 2 · d · d_mlp | every needed token whose input is changed |
| read-out | d per column | the answers' columns of the vocabulary, at the read-out token, where it is changed |

This gives what one would write down by hand: nothing before the first changed position; at the layer of a patch only
what lies downstream of it; in the last block keys and values of all changed tokens, but queries, projection and MLP of
the read-out token only; of the vocabulary only the columns that the logit difference needs; and nothing at all for a
patch that puts in the value that is there already, or that cannot reach the read-out.

The clean runs are counted whole. A corrupted run is counted as a run derived from its clean run by other tokens (or
noise) at some positions, so what the two share is counted once.

A second, larger count stands beside it, to tell what a distance from the floor consists of: `whole` is what the same
runs take if, above the layer of the first patch, every token from the first changed one to the read-out passes through
whole blocks ("tokens × layers left"), although some products on some of them could be taken from the base run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.cases import Case, Cell, Sizes

Bools = np.ndarray


@dataclass(frozen=True)
class Values:
    """One flag for every value of a run.

    Attributes:
        pre, attn_out, mid, mlp_out, post: [layers, tokens].
        z: [layers, tokens, heads].
    """

    pre: Bools
    z: Bools
    attn_out: Bools
    mid: Bools
    mlp_out: Bools
    post: Bools


@dataclass(frozen=True)
class Floor:
    """Operations of a case.

    Attributes:
        base: of clean and corrupted runs.
        derived: of patched runs.
        whole: of all runs, in whole blocks above the first patch.
        runs: patched runs that can differ from their base at the read-out.
        asked: patched runs that the sweep asks for.
    """

    base: int
    derived: int
    whole: int
    runs: int
    asked: int

    @property
    def flops(self) -> int:
        return self.base + self.derived


def floor_of(case: Case) -> Floor:
    """The floor of a case; the read-out is the last token, two columns wide."""
    everywhere = _at(case.length, range(case.length))
    replaced = _at(case.length, case.replaced)
    clean = run_flops(case.sizes, everywhere, None, None)
    corrupted = run_flops(case.sizes, replaced, None, None)
    differs = changed_values(case.sizes, replaced, None, None)
    nothing = _at(case.length, ())
    costs = [run_flops(case.sizes, nothing, cell, differs) for cell in case.cells]
    whole = [_whole_flops(case.sizes, nothing, cell, differs) for cell in case.cells]
    each = case.n_pairs * case.draws  # every pair has the same shape
    return Floor(
        base=case.n_pairs * clean + each * corrupted,
        derived=each * sum(costs),
        whole=case.n_pairs * clean + each * (_whole_flops(case.sizes, replaced, None, None) + sum(whole)),
        runs=each * sum(cost > 0 for cost in costs),
        asked=each * len(costs),
    )


def run_flops(sizes: Sizes, start: Bools, cell: Cell | None, differs: Values | None, columns: int = 2) -> int:
    """Operations of one run.

    Args:
        sizes: the model.
        start: tokens whose embedding is not the base run's: all for a run that has no base.
        cell: what is patched, if anything.
        differs: which values of the source run differ from the base run's.
        columns: columns of the vocabulary that are read.
    """
    changed = changed_values(sizes, start, cell, differs)
    needed = needed_values(sizes, len(start), cell)
    total = sum(_layer_products(sizes, changed, needed, layer) for layer in range(sizes.n_layers))
    total += int(changed.post[-1, -1]) * sizes.d_model * columns
    return 2 * total


def _whole_flops(sizes: Sizes, start: Bools, cell: Cell | None, differs: Values | None) -> int:
    """Operations of one run if above the layer where it begins to differ whole blocks are computed."""
    changed, needed = changed_values(sizes, start, cell, differs), needed_values(sizes, len(start), cell)
    alive = changed.post.any(axis=1)
    if not changed.post[-1, -1]:
        return 0
    born = int(np.argmax(alive))
    everything = changed_values(
        sizes, _at(len(start), range(int(np.argmax(changed.post[born])), len(start))), None, None
    )
    uncut = needed_values(sizes, len(start), None)
    total = _layer_products(sizes, changed, needed, born)
    total += sum(_layer_products(sizes, everything, uncut, layer) for layer in range(born + 1, sizes.n_layers))
    return 2 * (total + 2 * sizes.d_model)


def changed_values(sizes: Sizes, start: Bools, cell: Cell | None, differs: Values | None) -> Values:
    """Which values can differ from the base run's."""
    values = _empty(sizes, len(start))
    before = start
    for layer in range(sizes.n_layers):
        values.pre[layer] = before
        _patch(values, "resid_pre", layer, cell, differs)
        values.z[layer] = np.logical_or.accumulate(values.pre[layer])[:, None]  # a token sees those before it
        _patch(values, "z", layer, cell, differs)
        values.attn_out[layer] = values.z[layer].any(axis=1)
        _patch(values, "attn_out", layer, cell, differs)
        values.mid[layer] = values.pre[layer] | values.attn_out[layer]
        values.mlp_out[layer] = values.mid[layer]
        _patch(values, "mlp_out", layer, cell, differs)
        values.post[layer] = values.mid[layer] | values.mlp_out[layer]
        _patch(values, "resid_post", layer, cell, differs)
        before = values.post[layer]
    return values


def needed_values(sizes: Sizes, length: int, cell: Cell | None) -> Values:
    """Which values must be *computed* for the last token's logits: patched ones need not be."""
    values = _empty(sizes, length)
    after = _at(length, (length - 1,))
    for layer in reversed(range(sizes.n_layers)):
        values.post[layer] = after
        _patch(values, "resid_post", layer, cell, None)
        values.mlp_out[layer] = values.post[layer]
        _patch(values, "mlp_out", layer, cell, None)
        values.mid[layer] = values.post[layer]
        values.attn_out[layer] = values.mid[layer]
        _patch(values, "attn_out", layer, cell, None)
        values.z[layer] = values.attn_out[layer][:, None]
        _patch(values, "z", layer, cell, None)
        values.pre[layer] = values.mid[layer] | _looked_at(values.z[layer]).any(axis=1)
        _patch(values, "resid_pre", layer, cell, None)
        after = values.pre[layer]
    return values


def _layer_products(sizes: Sizes, changed: Values, needed: Values, layer: int) -> int:
    """Multiply-adds of one block."""
    width, per_head = sizes.d_model, sizes.d_model // sizes.n_heads
    pre, z = changed.pre[layer], needed.z[layer]
    tokens = np.arange(len(pre))
    stale = np.logical_or.accumulate(pre)[:, None] & z  # z that must be computed anew
    keys = np.where(pre, tokens + 1, np.cumsum(pre))[:, None]
    return int(
        (pre[:, None] & z).sum() * width * per_head
        + (pre[:, None] & _looked_at(z)).sum() * 2 * width * per_head
        + (stale * keys).sum() * per_head
        + (stale * (tokens + 1)[:, None]).sum() * per_head
        + (changed.z[layer] & needed.attn_out[layer][:, None]).sum() * per_head * width
        + (changed.mid[layer] & needed.mlp_out[layer]).sum() * 2 * width * sizes.d_mlp
    )


def _looked_at(z: Bools) -> Bools:
    """(token, head) whose key and value some needed z of the same or a later token looks at."""
    return np.logical_or.accumulate(z[::-1])[::-1]


_STAGE = {"resid_pre": "pre", "z": "z", "attn_out": "attn_out", "mlp_out": "mlp_out", "resid_post": "post"}


def _patch(values: Values, site: str, layer: int, cell: Cell | None, source: Values | None) -> None:
    """Where the cell patches, the flag is that of the source run (None: no)."""
    if cell is None or cell.site != site or layer not in cell.layers:
        return
    flags = getattr(values, _STAGE[site])[layer]
    where = [slice(None) if cell.position is None else cell.position]
    where += [slice(None) if cell.head is None else cell.head] if site == "z" else []
    flags[tuple(where)] = False if source is None else getattr(source, _STAGE[site])[layer][tuple(where)]


def _empty(sizes: Sizes, length: int) -> Values:
    def flags(*more: int) -> Bools:
        return np.zeros((sizes.n_layers, length, *more), dtype=bool)

    return Values(flags(), flags(sizes.n_heads), flags(), flags(), flags(), flags())


def _at(length: int, positions: range | tuple[int, ...]) -> Bools:
    flags = np.zeros(length, dtype=bool)
    flags[list(positions)] = True
    return flags

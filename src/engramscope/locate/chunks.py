"""A sweep in pieces: what is computed, and stored, at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engramscope.engine.executor import Executor
from engramscope.locate.cells import Cell
from engramscope.locate.prepare import Prepared
from engramscope.locate.runs import places_touched, runs_of_cell
from engramscope.models.anatomy import Anatomy
from engramscope.models.offload import is_offloaded
from engramscope.models.site import is_weights

#: cells and pairs of a piece, at most
CELLS_PER_CHUNK = 1024
PAIRS_PER_CHUNK = 1024
#: runs of a piece, at most: they are objects before they are tensors
_RUNS = 16_384
#: multiply-adds of a piece, about: some seconds, so that little is lost where a study is stopped
_WORK = {"cpu": 3e12}
_WORK_ELSEWHERE = 5e14
#: pairs that the reference executor takes at a time
_REFERENCE_PAIRS = 64


@dataclass(frozen=True)
class Chunk:
    """A part of a sweep that is computed, and stored, in one piece.

    Attributes:
        id: unique and stable within a study.
        cells: its cells.
        pairs: indices of its pairs.
    """

    id: str
    cells: tuple[Cell, ...]
    pairs: tuple[int, ...]


def chunks_of(
    executor: Executor, cells: Sequence[Cell], pairs: Sequence[Prepared], prefix: str, memory_gb: float
) -> list[Chunk]:
    """A sweep in pieces, all cells of a pair together as far as that is possible: they share their base runs.

    Args:
        executor: will run them. It bounds its memory by itself, but for the reference executor, which keeps what it has
            recorded until a piece is done.
        cells: the cells of the sweep.
        pairs: the pairs that enter the sweeps.
        prefix: begins the ids; differs between sweeps.
        memory_gb: what the recorded values of a piece may take, in GiB; a piece has at least one pair.
    """
    if not pairs:
        return []
    cells_each = CELLS_PER_CHUNK
    if executor.way != "reference":
        runs = max((runs_of_cell(cell) for cell in cells), default=1)
        cells_each = min(cells_each, max(64, int(_work(executor) / (runs * _work_of_a_cell(executor, pairs)))))
    found = []
    for start in range(0, len(cells), cells_each):
        part = tuple(cells[start : start + cells_each])
        size = _even(len(pairs), _pairs_of(executor, part, pairs, memory_gb))
        for first in range(0, len(pairs), size):
            indices = tuple(pair.index for pair in pairs[first : first + size])
            # the extent is part of the id: a study resumed with other memory must not take one piece for another
            found.append(Chunk(f"{prefix}-{start:06d}+{len(part)}-{first:06d}+{len(indices)}", part, indices))
    return found


def values_per_run(anatomy: Anatomy, site: str, length: int) -> int:
    """How many numbers a run of `length` tokens holds at a site; for a module path at most the widest of all."""
    if is_weights(site):
        return 0
    neurons = anatomy.d_mlp or 4 * anatomy.d_model
    widths = {"mlp_act": neurons, "logits": anatomy.vocab, "pattern": anatomy.n_heads * length}
    heads = dict.fromkeys(("q", "z"), anatomy.n_heads * anatomy.d_head)
    groups = dict.fromkeys(("k", "v"), anatomy.n_kv_heads * anatomy.d_head)
    residual = dict.fromkeys(
        ("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "final_norm"), anatomy.d_model
    )
    known = {**residual, **heads, **groups, **widths}
    unknown = anatomy.vocab if site == anatomy.head else max(2 * neurons, 3 * anatomy.d_model)
    return length * known.get(site, unknown)


def _pairs_of(executor: Executor, cells: Sequence[Cell], pairs: Sequence[Prepared], memory_gb: float) -> int:
    """Pairs of a piece with these cells."""
    if executor.way == "reference":
        room = int(memory_gb * 2**30 / max(1, _recorded_bytes(executor, cells, pairs)))
        return max(1, min(_REFERENCE_PAIRS, room))
    runs = sum(runs_of_cell(cell) for cell in cells)
    by_work = int(_work(executor) / (runs * _work_of_a_cell(executor, pairs)))
    by_runs = _RUNS // (runs * _draws(pairs))
    return max(1, min(PAIRS_PER_CHUNK, by_work, by_runs))


def _work(executor: Executor) -> float:
    if is_offloaded(executor.model.hf):
        return float("inf")  # the weights come in once for every piece
    return _WORK.get(executor.model.device.type, _WORK_ELSEWHERE)


def _work_of_a_cell(executor: Executor, pairs: Sequence[Prepared]) -> float:
    """Multiply-adds of one cell in one pair, about: half of the blocks, and the tokens from the first difference on."""
    anatomy = executor.model.anatomy
    shared = [pair.shared(pair.draws[0]) if pair.draws else 0 for pair in pairs]
    tokens = sum(len(pair.tokens.clean) - same for pair, same in zip(pairs, shared, strict=True)) / len(pairs)
    return 6 * anatomy.d_model**2 * anatomy.n_layers * max(1.0, tokens) * _draws(pairs)


def _even(count: int, most: int) -> int:
    """How many of `count` to take at a time, so that every time is about as long: at most `most`."""
    times = -(-count // most)
    return -(-count // times)


def _recorded_bytes(executor: Executor, cells: Sequence[Cell], pairs: Sequence[Prepared]) -> int:
    """At most what the runs of one pair keep of the places that these cells patch."""
    model = executor.model
    places = {place for cell in cells for place in places_touched(cell, model.anatomy.n_layers)}
    per_run = sum(values_per_run(model.anatomy, site, _longest(pairs)) for site, _ in places)
    recorded = 1 + max(len(pair.draws) for pair in pairs) + sum(runs_of_cell(cell) - 1 for cell in cells)
    return recorded * per_run * model.dtype.itemsize


def _longest(pairs: Sequence[Prepared]) -> int:
    return max(len(pair.tokens.clean) for pair in pairs)


def _draws(pairs: Sequence[Prepared]) -> int:
    return max(1, max(len(pair.seeds) for pair in pairs))

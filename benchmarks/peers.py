"""What all peers do: one forward of the whole batch per cell, in random order until the time is up.

A peer is a module with `load(case, settings) -> Peer`. Its `forward` is what a good user of the library writes: all
pairs in one batch, no gradients, nothing recorded but the clean values that are patched, and those read once.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from benchmarks import workload
from benchmarks.cases import Case, Cell
from benchmarks.measure import PeakMemory, synchronise
from benchmarks.results import Result, Settings
from benchmarks.workload import Batch

#: rows of one forward, about: on a processor larger batches fall out of the cache and are slower per row
ROWS = {"cpu": 32, "cuda": 4096}


@dataclass(frozen=True)
class Rows:
    """What one forward runs: the corrupted prompts of all pairs under some of the draws.

    Attributes:
        tokens: token ids [rows, length].
        noise: what is added to their embeddings, [rows, positions, d_model]; None for none.
        copies: how many draws there are: the clean values are repeated as often.
    """

    tokens: torch.Tensor
    noise: torch.Tensor | None
    copies: int


class Peer(Protocol):
    """A library, with the model and the prompts of one case."""

    batch: Batch
    weights: str
    version: str

    def cache_clean(self, cells: Sequence[Cell]) -> None:
        """Run the clean prompts and keep the values that these cells patch."""

    def forward(self, rows: Rows, cell: Cell | None, *, only_last: bool = False) -> torch.Tensor:
        """Logits [rows, vocab] at the last position of a run, patched where a cell is given.

        Args:
            rows: the prompts.
            cell: what is patched.
            only_last: ask the model for the logits of the last position only, instead of those of all positions.
        """


def logit_diff(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Logit of the correct answer less that of the incorrect one, a row for every run."""
    rows = torch.arange(len(logits), device=logits.device)
    copies = len(logits) // len(batch.correct)
    return logits[rows, batch.correct.repeat(copies)] - logits[rows, batch.incorrect.repeat(copies)]


@torch.no_grad()
def measure(tool: str, peer: Peer, case: Case, settings: Settings) -> Result:
    """Time a peer: clean and corrupted runs, then cells in random order, as many as the budget allows."""
    cells, parts = case.cells, _parts(case, peer.batch, settings.device)
    values = torch.full((len(cells), case.draws, case.n_pairs), torch.nan)
    peak = PeakMemory(settings.device)
    peer.cache_clean(cells[:1])  # warm-up: what a library does only once is not timed
    peer.forward(parts[0], cells[0])
    synchronise(settings.device)
    start = time.perf_counter()
    peer.cache_clean(cells)
    for rows in parts:
        logit_diff(peer.forward(rows, None), peer.batch)
    synchronise(settings.device)
    first = time.perf_counter() - start
    each: list[float] = []
    for index in torch.randperm(len(cells), generator=torch.Generator().manual_seed(case.seed)).tolist():
        if each and not settings.full and first + sum(each) > settings.budget_s:
            break
        begin = time.perf_counter()
        found = [logit_diff(peer.forward(rows, cells[index]), peer.batch) for rows in parts]
        values[index] = torch.cat(found).view(case.draws, case.n_pairs).cpu()  # waits for the device
        each.append(time.perf_counter() - begin)
    host, cuda = peak.host_bytes(), peak.cuda_bytes()
    per_cell = statistics.median(each)
    return Result(
        case.name,
        tool,
        peer.version,
        weights=peer.weights,
        seconds=first + (sum(each) if len(each) == len(cells) else per_cell * len(cells)),
        cells_run=len(each),
        cells=len(cells),
        host_bytes=host,
        cuda_bytes=cuda,
        details={
            "first_s": first,
            "forwards_per_cell": len(parts),
            "rows_per_forward": len(parts[0].tokens),
            "forward_s": per_cell / len(parts),
            "forward_spread_s": [float(q) / len(parts) for q in np.quantile(each, [0, 0.5, 1])],
            "forward_only_last_s": _only_last(peer, parts[0], cells, settings.device),
        },
        patched=values.numpy(),
    )


def _only_last(peer: Peer, rows: Rows, cells: Sequence[Cell], device: str) -> float:
    """Median seconds of a forward that asks for the logits of the last position only, for comparison.

    No sweep helper of the peers does this, but a user who knows transformers can ask for it.
    """
    taken = []
    for cell in [cells[0], *cells[:: max(1, len(cells) // 5)]]:
        begin = time.perf_counter()
        logit_diff(peer.forward(rows, cell, only_last=True), peer.batch)
        synchronise(device)
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[1:])


def _parts(case: Case, batch: Batch, device: str) -> list[Rows]:
    """The corrupted runs of all pairs and draws, in forwards of a suitable size."""
    if batch.noise is None:
        return [Rows(batch.corrupted, None, 1)]
    size = max(1, ROWS["cuda" if device.startswith("cuda") else "cpu"] // case.n_pairs)
    parts = []
    for first in range(0, case.draws, size):
        noise = batch.noise[first : first + size]
        parts.append(Rows(batch.corrupted.repeat(len(noise), 1), noise.flatten(0, 1), len(noise)))
    return parts


def prepared(case: Case, settings: Settings) -> tuple[Any, Any, Batch, str]:
    """Model, tokenizer, prompts and hash of the weights."""
    model, tokenizer = workload.make_model(case, settings.device), workload.make_tokenizer(case)
    batch, weights = workload.make_batch(case, model, tokenizer), workload.weight_hash(model)
    # as transformers loads it; besides, torch multiplies a part of the positions by the head more slowly without
    return model.requires_grad_(True), tokenizer, batch, weights

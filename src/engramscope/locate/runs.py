"""From cells to runs: the patches that one cell makes in one pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engramscope.corruptions._base import Donor, Draw, Zero
from engramscope.engine.plan import BaseRun, Constant, DerivedRun, FromRun, Patch, Source
from engramscope.locate.cells import Cell, cell_positions
from engramscope.locate.prepare import Prepared, clean_run, corrupted_run

Place = tuple[str, int | None]
#: for mean ablation: (place, index of the pair) -> values [positions or 1, width]
Means = Mapping[tuple[Place, int], Tensor]


@dataclass(frozen=True)
class Skipped:
    """A cell that cannot be run in a pair.

    Attributes:
        reason: why, for the `status` column ("skipped: …").
    """

    reason: str


@dataclass(frozen=True)
class CellRun:
    """A cell in a pair, as runs.

    Attributes:
        run: the derived run.
        bases: the base runs that it needs.
        seed: number of the draw.
    """

    run: DerivedRun
    bases: tuple[BaseRun, ...]
    seed: int


def site_at(cell: Cell, layer: int | None) -> str:
    """The site of a patch at `layer`: a module path may hold `{layer}`."""
    return cell.site.replace("{layer}", str(layer)) if layer is not None else cell.site


def places_of(cell: Cell) -> tuple[Place, ...]:
    """(site, layer) of every patch of a cell; module paths carry their layer in the path."""
    if not cell.layers:
        return ((cell.site, None),)
    if "{layer}" in cell.site:
        return tuple((site_at(cell, layer), None) for layer in cell.layers)
    return tuple((cell.site, layer) for layer in cell.layers)


def changes_nothing(cell: Cell, pair: Prepared, shared: int) -> bool:
    """Whether a cell puts values in place that are there already: both prompts are one up to the patched positions.

    Args:
        cell: what is patched.
        pair: the pair; True only where its prompts are aligned position by position.
        shared: how many tokens they begin with in common (`Prepared.shared`).
    """
    alignment, count = pair.tokens.alignment, len(pair.tokens.clean)
    if alignment.clean != alignment.corrupted or not len(alignment.clean) == count == len(pair.tokens.corrupted):
        return False
    wanted = cell_positions(cell, pair.tokens)
    return bool(wanted) and max(wanted) < shared


def swap_run(
    cell: Cell, pair: Prepared, draw: Draw, continuation: tuple[int, ...], run_id: str, self_patch: bool = False
) -> CellRun | Skipped:
    """The run in which a cell takes its values from the other prompt of the pair.

    Args:
        cell: what is patched; its direction says which prompt is the base.
        pair: the pair.
        draw: which corrupted run.
        continuation: tokens of the answer that both prompts are continued by.
        run_id: id of the new run.
        self_patch: take the values from the base itself (the noise floor).
    """
    clean, corrupted = clean_run(pair, continuation), corrupted_run(pair, draw, continuation)
    wanted = cell_positions(cell, pair.tokens)
    if not wanted:
        return Skipped(f"the prompt has no position {cell.position_role!r}")
    partners = pair.partner(wanted)
    if not partners:
        return Skipped("its positions have no partner in the other prompt")
    if cell.site == "pattern" and len(clean.tokens) != len(corrupted.tokens):
        return Skipped("attention weights have no partner in a prompt of another length")
    base, source = (corrupted, clean) if cell.direction == "denoise" else (clean, corrupted)
    into = tuple(q if cell.direction == "denoise" else p for p, q in partners)
    out_of = into if self_patch else tuple(p if cell.direction == "denoise" else q for p, q in partners)
    values = FromRun(base.id if self_patch else source.id, out_of)
    return CellRun(_derived(cell, base, into, [values] * len(places_of(cell)), run_id), (clean, corrupted), draw.seed)


def ablation_run(
    cell: Cell,
    pair: Prepared,
    number: int,
    pairs: Sequence[Prepared],
    means: Means,
    continuation: tuple[int, ...],
    run_id: str,
    self_patch: bool = False,
) -> CellRun | Skipped:
    """The run in which a cell's values in the clean run are replaced by zero, a mean, or a donor's values.

    With `self_patch` they are replaced by themselves instead (the noise floor).
    """
    wanted = cell_positions(cell, pair.tokens)
    if not wanted:
        return Skipped(f"the prompt has no position {cell.position_role!r}")
    ablation = pair.ablations[number]
    base = clean_run(pair, continuation)
    if self_patch:
        itself: list[Source] = [FromRun(base.id, wanted) for _ in places_of(cell)]
        return CellRun(_derived(cell, base, wanted, itself, run_id), (base,), number)
    if isinstance(ablation, Donor):
        donor = clean_run(pairs[ablation.pair], continuation)
        sources: list[Source] = [FromRun(donor.id, wanted) for _ in places_of(cell)]
        return CellRun(_derived(cell, base, wanted, sources, run_id), (base, donor), ablation.seed)
    if isinstance(ablation, Zero):
        sources = [Constant(torch.zeros(())) for _ in places_of(cell)]
    elif any((place, pair.index) not in means for place in places_of(cell)):
        return Skipped("a mean over all positions says nothing about attention weights; use prompts of one length")
    else:
        sources = [Constant(_mean_rows(means[place, pair.index], wanted)) for place in places_of(cell)]
    return CellRun(_derived(cell, base, wanted, sources, run_id), (base,), number)


def _mean_rows(mean: Tensor, positions: tuple[int, ...]) -> Tensor:
    return mean if mean.shape[0] == 1 else mean[list(positions)]


def _derived(
    cell: Cell, base: BaseRun, positions: tuple[int, ...], sources: Sequence[Source], run_id: str
) -> DerivedRun:
    patches = tuple(
        Patch(site, layer, positions, source, cell.heads)
        for (site, layer), source in zip(places_of(cell), sources, strict=True)
    )
    return DerivedRun(run_id, base.id, patches)

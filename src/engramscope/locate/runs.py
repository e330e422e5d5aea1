"""From cells to runs: the patches that one cell makes in one pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engramscope.corruptions._base import Donor, Draw, Zero
from engramscope.engine.plan import BaseRun, Constant, DerivedRun, FromRun, Patch, Source
from engramscope.locate.cells import Cell, cell_positions, role_positions
from engramscope.locate.paths import Edges, path_runs, places_read, runs_between
from engramscope.locate.prepare import Prepared, clean_run, corrupted_run
from engramscope.models.anatomy import Anatomy

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
        run: the derived run that is read.
        bases: the base runs that it needs.
        seed: number of the draw.
        between: derived runs that it takes values from.
    """

    run: DerivedRun
    bases: tuple[BaseRun, ...]
    seed: int
    between: tuple[DerivedRun, ...] = ()


def site_at(cell: Cell, layer: int | None) -> str:
    """The site of a patch at `layer`: a module path may hold `{layer}`."""
    return cell.site.replace("{layer}", str(layer)) if layer is not None else cell.site


def places_touched(cell: Cell, n_layers: int) -> tuple[Place, ...]:
    """Every (site, layer) that a cell's runs read or write, those of severed modules and receivers included."""
    places = dict.fromkeys(places_of(cell))
    if cell.severed is not None:
        places |= dict.fromkeys((cell.severed, layer) for layer in range(n_layers))
    if cell.paths is not None:
        places |= places_read(cell.paths, n_layers)
    return tuple(places)


def runs_of_cell(cell: Cell) -> int:
    """How many derived runs a cell takes under one draw, at most."""
    return 1 if cell.paths is None else max(1, runs_between(cell.paths.receivers))


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
    if cell.other_draw:
        return False  # severed modules get other values, whatever is restored
    alignment, count = pair.tokens.alignment, len(pair.tokens.clean)
    if alignment.clean != alignment.corrupted or not len(alignment.clean) == count == len(pair.tokens.corrupted):
        return False
    wanted = cell_positions(cell, pair.tokens)
    return bool(wanted) and max(wanted) < shared


def swap_run(
    cell: Cell,
    pair: Prepared,
    draw: Draw,
    anatomy: Anatomy,
    continuation: tuple[int, ...],
    run_id: str,
    self_patch: bool = False,
) -> CellRun | Skipped:
    """The run in which a cell takes its values from the other prompt of the pair.

    Args:
        cell: what is patched; its direction says which prompt is the base.
        pair: the pair.
        draw: which corrupted run.
        anatomy: the model's parts.
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
    if cell.paths is not None:
        return _path_run(cell, pair, draw, anatomy, (clean, corrupted), base, into, values, run_id)
    run = _derived(cell, base, into, [values] * len(places_of(cell)), run_id)
    if cell.severed is None:
        return CellRun(run, (clean, corrupted), draw.seed)
    # for the noise floor everything is the run's own
    redrawn = cell.other_draw and not self_patch
    other = corrupted_run(pair, _next_draw(pair, draw), continuation) if redrawn else base
    severed = DerivedRun(run_id, base.id, (*run.patches, *_severed(cell, into, other.id, anatomy.n_layers)))
    return CellRun(severed, (clean, corrupted, other), draw.seed)


def _severed(cell: Cell, positions: tuple[int, ...], run: str, n_layers: int) -> list[Patch]:
    """Modules at the patched positions that add what they add in `run` (Meng et al. 2022, Figure 3 and appendix B.2).

    Below the restored state nothing can differ where `run` is the patched run's own base.
    """
    assert cell.severed is not None
    first = 0 if cell.other_draw else min(cell.layers)
    return [Patch(cell.severed, layer, positions, FromRun(run, positions)) for layer in range(first, n_layers)]


def _next_draw(pair: Prepared, draw: Draw) -> Draw:
    """Another draw of the same noise; with the pair's last one, its first."""
    return pair.draws[([one.seed for one in pair.draws].index(draw.seed) + 1) % len(pair.draws)]


def _path_run(
    cell: Cell,
    pair: Prepared,
    draw: Draw,
    anatomy: Anatomy,
    bases: tuple[BaseRun, ...],
    base: BaseRun,
    into: tuple[int, ...],
    values: FromRun,
    run_id: str,
) -> CellRun | Skipped:
    assert cell.paths is not None
    at = _receiving(cell, pair, len(base.tokens))
    if not at and any(receiver.kind != "logits" for receiver in cell.paths.receivers):
        return Skipped(f"the prompt has no position {' or '.join(cell.paths.roles)!r} at which to receive")
    edges = Edges(
        base.id, len(base.tokens), cell.site, cell.layer, cell.heads, into, values, at, anatomy.parallel,
        anatomy.n_layers,
    )  # fmt: skip
    between, run = path_runs(edges, cell.paths, run_id)
    return CellRun(run, bases, draw.seed, tuple(between))


def _receiving(cell: Cell, pair: Prepared, length: int) -> tuple[int, ...]:
    """Positions of the base run at which receivers receive."""
    assert cell.paths is not None
    if "all" in cell.paths.roles:
        return tuple(range(length))
    wanted = sorted({position for role in cell.paths.roles for position in role_positions(role, pair.tokens)})
    return tuple(q if cell.direction == "denoise" else p for p, q in pair.partner(wanted))


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

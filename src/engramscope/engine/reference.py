"""The reference executor: plain hooked forwards, slow and obvious; the oracle for every other executor.

Runs of equal length share one forward of the unmodified Hugging Face model, a row each, so nothing is ever padded.
Every row has its own patches: sites, layers, heads, positions and sources. Recorded values live until the plan is done.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from engramscope.engine.answered import Answered
from engramscope.engine.plan import BaseRun, DerivedRun, FromRun, Noise, Patch, Plan, source_runs
from engramscope.engine.values import constant_rows, rows_at, write_at
from engramscope.models.hooks import taps
from engramscope.models.model import Model
from engramscope.models.site import SiteAccess

Place = tuple[str, int | None]  # (site, layer)
Recorded = dict[tuple[str, Place], Tensor]  # (run id, place) -> [seq, width] or [n_heads, query, key]
Tap = tuple[SiteAccess, Callable[[Tensor], Tensor | None]]
AnyRun = BaseRun | DerivedRun

#: tokens per forward: larger batches fall out of a CPU's cache and gain nothing
MAX_TOKENS = 2048


def execute(model: Model, plan: Plan, max_tokens: int = MAX_TOKENS) -> Iterator[Answered]:
    """Run everything in `plan` and yield the logits that it asks for, a batch of equal runs at a time.

    Args:
        model: the model.
        plan: runs and read-outs.
        max_tokens: at most this many tokens in one forward (at least one run).

    Yields:
        `Answered`, in an order that follows the dependencies between runs, not the order of the plan.

    Raises:
        SiteError: the model does not offer a patched site.
    """
    read = _places_to_record(plan)
    positions = {readout.run: readout.positions for readout in plan.readouts}
    recorded: Recorded = {}
    for level in _levels(plan):
        for batch in _batches(plan, level, read, positions, max_tokens, model.anatomy.head):
            logits = _forward(model, plan, batch, read, recorded, positions)
            asked = [run for run in batch if run.id in positions]
            if asked:
                yield Answered(tuple(run.id for run in asked), logits)


def record(model: Model, bases: Sequence[BaseRun], places: Sequence[Place]) -> Iterator[tuple[str, Place, Tensor]]:
    """Values at `places` of base runs, one run and place at a time: [seq, width] or [n_heads, query, key]."""
    by_length: dict[int, list[BaseRun]] = defaultdict(list)
    for base in bases:
        by_length[len(base.tokens)].append(base)
    for length, group in by_length.items():
        for batch in _sliced(group, max(1, MAX_TOKENS // length)):
            recorded: Recorded = {}
            plan = Plan(tuple(run for run in batch if isinstance(run, BaseRun)))
            _forward(model, plan, list(batch), {base.id: set(places) for base in batch}, recorded, {})
            for (run, place), value in recorded.items():
                yield run, place, value


def record_plan(
    model: Model, plan: Plan, wanted: Mapping[str, Collection[Place]]
) -> Iterator[tuple[str, Place, Tensor]]:
    """Values at places of runs of a plan, base or derived, as they are after the run's own patches there.

    Args:
        model: the model.
        plan: the runs; its read-outs are not looked at.
        wanted: run id -> (site, layer) to record. Runs that nobody reads and nobody wants are not computed.

    Yields:
        (run id, place, value), one run and place at a time: [seq, width], or [n_heads, query, key] for a pattern. What
        other runs take their values from is kept until the plan is done.

    Raises:
        SiteError: the model does not offer a patched or recorded site.
    """
    sources = _places_to_record(plan)
    read = {run: {*sources.get(run, ()), *wanted.get(run, ())} for run in {*sources, *wanted}}
    recorded: Recorded = {}
    for level in _levels(plan):
        needed = [run for run in level if run.id in read]
        for batch in _batches(plan, needed, read, {}, MAX_TOKENS, model.anatomy.head):
            _forward(model, plan, batch, read, recorded, {})
            for run in batch:
                for place in dict.fromkeys(wanted.get(run.id, ())):
                    keep = place in sources.get(run.id, ())
                    yield run.id, place, recorded[run.id, place] if keep else recorded.pop((run.id, place))


def _places_to_record(plan: Plan) -> dict[str, set[Place]]:
    read: dict[str, set[Place]] = defaultdict(set)
    for run in plan.derived:
        for patch in run.patches:
            if isinstance(patch.source, FromRun):
                read[patch.source.run].add((patch.site, patch.layer))
    return read


def _levels(plan: Plan) -> list[list[AnyRun]]:
    """Runs by depth: a run comes after every run that it reads from."""
    depth: dict[str, int] = {base.id: 0 for base in plan.bases}
    levels: list[list[AnyRun]] = [list(plan.bases)]
    for run in plan.derived:
        depth[run.id] = 1 + max((depth[source] for source in source_runs(run.patches)), default=0)
        while len(levels) <= depth[run.id]:
            levels.append([])
        levels[depth[run.id]].append(run)
    return levels


def _batches(
    plan: Plan,
    runs: Sequence[AnyRun],
    read: Mapping[str, set[Place]],
    positions: Mapping[str, tuple[int, ...]],
    max_tokens: int,
    head: str,
) -> Iterator[list[AnyRun]]:
    """Runs that can share a forward: equal length, equally many read-outs, the same places to record."""
    groups: dict[object, list[AnyRun]] = defaultdict(list)
    for run in runs:
        length = len(plan.base_of(run).tokens)
        asked = len(positions[run.id]) if run.id in positions else None
        groups[length, asked, frozenset(read.get(run.id, ())), _touches_head([run], read, head)].append(run)
    for group in groups.values():
        length = len(plan.base_of(group[0]).tokens)
        yield from _sliced(group, max(1, max_tokens // max(1, length)))


def _touches_head(batch: Sequence[AnyRun], read: Mapping[str, set[Place]], head: str) -> bool:
    """Whether the logits, or anything in the head, is patched or recorded: then the head must see every position."""
    touched = {patch.site for run in batch if isinstance(run, DerivedRun) for patch in run.patches}
    touched |= {site for run in batch for site, _ in read.get(run.id, ())}
    return any(site in ("logits", head) or site.startswith(f"{head}.") for site in touched)


def _sliced(items: Sequence[AnyRun], size: int) -> Iterator[list[AnyRun]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def _forward(
    model: Model,
    plan: Plan,
    batch: Sequence[AnyRun],
    read: Mapping[str, set[Place]],
    recorded: Recorded,
    positions: Mapping[str, tuple[int, ...]],
) -> Tensor:
    """One forward of the model on the rows of `batch`; fills `recorded`, returns [rows, positions, vocab]."""
    bases = [plan.base_of(run) for run in batch]
    tokens = torch.tensor([base.tokens for base in bases], device=model.device)
    actions = [
        *_noise_taps(model, bases),
        *_patch_taps(model, batch, recorded),
        *_record_taps(model, batch, read, recorded),
    ]
    asked = [positions.get(run.id, ()) for run in batch]
    kept = _positions_to_keep(model, batch, read, asked, tokens.shape[1])
    only = {} if kept is None else {"logits_to_keep": torch.tensor(kept, device=model.device)}
    with torch.no_grad(), taps(model, actions):
        logits: Tensor = model.hf(input_ids=tokens, use_cache=False, **only).logits
    place = {position: number for number, position in enumerate(kept or range(tokens.shape[1]))}
    index = torch.tensor([[place[position] for position in row] for row in asked], dtype=torch.long)
    return logits[torch.arange(len(batch), device=logits.device)[:, None], index.to(logits.device)]


def _positions_to_keep(
    model: Model, batch: Sequence[AnyRun], read: Mapping[str, set[Place]], asked: Sequence[tuple[int, ...]], length: int
) -> list[int] | None:
    """Positions at which the head must be applied; None for all: where the head itself is patched or read.

    On a small model the head is a large part of the work, and most of its logits are never looked at.
    """
    if "logits_to_keep" not in inspect.signature(model.hf.forward).parameters:
        return None
    if _touches_head(batch, read, model.anatomy.head):
        return None
    return sorted({position for row in asked for position in row}) or [length - 1]


def _noise_taps(model: Model, bases: Sequence[BaseRun]) -> list[Tap]:
    noises: list[tuple[int, Noise]] = [(row, base.noise) for row, base in enumerate(bases) if base.noise is not None]
    if not noises:
        return []

    def add(value: Tensor) -> Tensor:
        result = value.clone()
        wide = torch.promote_types(value.dtype, torch.float32)  # 16-bit numbers are added in float32, not rounded twice
        for row, noise in noises:
            index = torch.tensor(noise.positions, device=value.device)
            result[row, index] = (value[row, index].to(wide) + noise.values.to(value.device, wide)).to(value.dtype)
        return result

    return [(model.site("embed", None), add)]


def _patch_taps(model: Model, batch: Sequence[AnyRun], recorded: Recorded) -> list[Tap]:
    """One tap for every place at which some row of the batch is patched."""
    at: dict[Place, list[tuple[int, Patch]]] = defaultdict(list)
    for row, run in enumerate(batch):
        for patch in run.patches if isinstance(run, DerivedRun) else ():
            at[patch.site, patch.layer].append((row, patch))
    return [_patch_tap(model, patches, recorded) for patches in at.values()]


def _patch_tap(model: Model, patches: Sequence[tuple[int, Patch]], recorded: Recorded) -> Tap:
    """All patches of the batch at one place; those of a row act in their order."""
    access = model.site(patches[0][1].site, patches[0][1].layer)
    turns: dict[tuple[int, tuple[int, ...] | None], list[tuple[int, Patch]]] = defaultdict(list)
    seen: dict[int, int] = defaultdict(int)
    for row, patch in patches:
        if patch.positions:
            turns[seen[row], patch.heads].append((row, patch))
            seen[row] += 1

    def put(value: Tensor) -> Tensor:
        result = value.clone()
        for (_, heads), group in sorted(turns.items(), key=lambda item: item[0][0]):
            new = torch.cat([_source_values(patch, access, recorded, value) for _, patch in group])
            rows = torch.tensor([row for row, patch in group for _ in patch.positions], device=value.device)
            positions = torch.tensor([p for _, patch in group for p in patch.positions], device=value.device)
            write_at(result, access, heads, rows, positions, new)
        return result

    return access, put


def _source_values(patch: Patch, access: SiteAccess, recorded: Recorded, like: Tensor) -> Tensor:
    if isinstance(patch.source, FromRun):
        value = recorded[patch.source.run, (patch.site, patch.layer)]
        return rows_at(value, access, patch.heads, patch.source.positions).to(like)
    return constant_rows(patch.source.values.to(like), access, patch.heads, len(patch.positions), like)


def _record_taps(
    model: Model, batch: Sequence[AnyRun], read: Mapping[str, set[Place]], recorded: Recorded
) -> list[Tap]:
    places = sorted(read.get(batch[0].id, ()), key=str)

    def keep(place: Place) -> Callable[[Tensor], None]:
        def store(value: Tensor) -> None:
            for row, run in enumerate(batch):
                recorded[run.id, place] = value[row].detach().clone()

        return store

    return [(model.site(*place), keep(place)) for place in places]

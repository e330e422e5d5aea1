"""Runs of two models of one shape, whose values and weights take each other's place.

A plan may hold base runs of both models (`BaseRun.model`). What a derived run takes from a run of the other model is
recorded there first and is then a given value; what it borrows of the other's weights is copied in for the time of its
forward, and back again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Literal

import torch
from torch import Tensor

from engramscope.engine import reference
from engramscope.engine.answered import Answered
from engramscope.engine.executor import Executor, Kind, ensure_evaluation, make_executor
from engramscope.engine.plan import BaseRun, Constant, DerivedRun, FromRun, Patch, Plan, Readout
from engramscope.models.model import Model
from engramscope.models.site import is_weights
from engramscope.models.weights import borrowed

Columns = Mapping[str, tuple[int, ...]] | None
#: share of the memory that values of the other model's runs may take
_RECORDED_SHARE = 0.25


@dataclass(frozen=True)
class TwoModels(Executor):
    """Executes plans on two models of one shape. Made by `make_executor_of_two`.

    Attributes:
        base: executes what runs in the base model, the one before training.
        differing: names of the tensors in which the two differ.
    """

    base: Executor = field(kw_only=True)
    differing: frozenset[str] = field(kw_only=True)
    own: Executor = field(kw_only=True)

    def whole_forwards(self) -> Executor:
        """The same models, every run by a forward of its own."""
        return make_executor_of_two(self.model, self.base.model, self.differing, "reference", self.memory_gb)

    def execute(self, plan: Plan, columns: Columns = None, *, skip_identities: bool = True) -> Iterator[Answered]:
        """Run everything in `plan`; see `Executor.execute`.

        Raises:
            ValueError: a run takes values from a derived run of the other model (an error of the caller).
        """
        ensure_evaluation(self.model.hf, self.model.name)
        ensure_evaluation(self.base.model.hf, self.base.model.name)
        readouts = {readout.run: readout for readout in plan.readouts}
        for where, executor in (("own", self.own), ("base", self.base)):
            bases = {run.id: run for run in plan.bases if run.model == where}
            derived = [run for run in plan.derived if run.base in bases]
            lent = [run for run in derived if any(is_weights(patch.site) for patch in run.patches)]
            patched = [run for run in derived if run not in lent] if lent else derived
            for bases_at, runs in self._portions(plan, list(bases.values()), patched, executor):
                here = Plan(tuple(bases_at), tuple(runs), _asked(readouts, [*bases_at, *runs]))
                yield from executor.execute(here, columns, skip_identities=skip_identities)
            yield from self._borrowing(plan, lent, executor, readouts, columns)

    def _portions(
        self, plan: Plan, bases: Sequence[BaseRun], runs: Sequence[DerivedRun], executor: Executor
    ) -> Iterator[tuple[list[BaseRun], list[DerivedRun]]]:
        """Base runs with what derives from them, as much at a time as recorded values of the other model may take."""
        of: dict[str, list[DerivedRun]] = defaultdict(list)
        for run in runs:
            of[run.base].append(run)
        room, size = _RECORDED_SHARE * self.memory_gb * 2**30, 0.0
        portion: list[BaseRun] = []
        for base in bases:
            more = self._recorded_bytes(plan, base, of[base.id])
            if portion and size + more > room:
                yield portion, self._given(plan, [run for one in portion for run in of[one.id]], executor)
                portion, size = [], 0.0
            portion, size = [*portion, base], size + more
        if portion:
            yield portion, self._given(plan, [run for one in portion for run in of[one.id]], executor)

    def _recorded_bytes(self, plan: Plan, base: BaseRun, runs: Sequence[DerivedRun]) -> float:
        places = {
            (patch.source.run, patch.site, patch.layer)
            for run in runs
            for patch in run.patches
            if isinstance(patch.source, FromRun) and _model_of(plan, patch.source.run) != base.model
        }
        length = len(base.tokens)
        return sum(_values(self.model, site, length) for _, site, _ in places) * self.model.dtype.itemsize

    def _given(self, plan: Plan, runs: Sequence[DerivedRun], executor: Executor) -> list[DerivedRun]:
        """The runs with what they take from the other model as given values."""
        wanted: dict[str, set[tuple[str, int | None]]] = defaultdict(set)
        where = "base" if executor is self.base else "own"
        for run in runs:
            for patch in run.patches:
                if isinstance(patch.source, FromRun) and _model_of(plan, patch.source.run) != where:
                    wanted[patch.source.run].add((patch.site, patch.layer))
        if not wanted:
            return list(runs)
        sources = [plan[run] for run in wanted]
        if not all(isinstance(source, BaseRun) for source in sources):
            raise ValueError("values of the other model come from its unpatched runs only")
        other = self.own if executor is self.base else self.base
        there = Plan(tuple(source for source in sources if isinstance(source, BaseRun)))
        seen = {(run, place): value for run, place, value in reference.record_plan(other.model, there, wanted)}
        rows: dict[object, Tensor] = {}

        def given(patch: Patch) -> Patch:
            source = patch.source
            if not isinstance(source, FromRun) or source.run not in wanted:
                return patch
            key = (source.run, patch.site, patch.layer, source.positions)
            if key not in rows:
                rows[key] = _rows(seen[source.run, (patch.site, patch.layer)], source.positions, patch.site)
            return replace(patch, source=Constant(rows[key]))

        return [replace(run, patches=tuple(map(given, run.patches))) for run in runs]

    def _borrowing(
        self,
        plan: Plan,
        runs: Sequence[DerivedRun],
        executor: Executor,
        readouts: Mapping[str, Readout],
        columns: Columns,
    ) -> Iterator[Answered]:
        """Runs with borrowed weights: all that borrow the same tensors go through the model together."""
        together: dict[frozenset[str], list[BaseRun]] = defaultdict(list)
        for run in runs:
            together[self._tensors(plan, run)].append(replace(plan.base_of(run), id=run.id))
        other = self.own if executor is self.base else self.base
        for names, group in together.items():
            with borrowed(executor.model.hf, other.model.hf, names):
                answers = executor.execute(Plan(tuple(group), (), _asked(readouts, group)), columns)
                yield from answers

    def _tensors(self, plan: Plan, run: DerivedRun) -> frozenset[str]:
        """Names of the tensors that a run borrows; only those that make a difference, but for whole forwards."""
        names: set[str] = set()
        for patch in run.patches:
            if not is_weights(patch.site) or not isinstance(patch.source, FromRun):
                raise ValueError(f"run {run.id!r} patches values as well as weights")
            if _model_of(plan, patch.source.run) != plan.base_of(run).model:
                names.update(self.model.tensors(patch.site, patch.layer))
        return frozenset(names) if self.way == "reference" else frozenset(names) & self.differing


def make_executor_of_two(
    model: Model, base: Model, differing: frozenset[str], kind: Kind = "traversal", memory_gb: float = 4.0
) -> TwoModels:
    """An executor for a model and the one that it was before it was trained.

    Args:
        model: the model that is studied.
        base: the same before training: tensors of the same names, shapes and types.
        differing: names of the tensors in which they differ.
        kind: as for `make_executor`.
        memory_gb: what may be added to the two models, in GiB.

    Raises:
        ModelError: one of them is in training mode.
    """
    own = make_executor(model, kind, memory_gb)
    before = replace(make_executor(base, kind, memory_gb), fallbacks=own.fallbacks)
    ways: tuple[Literal["packed", "rows", "reference"], ...] = ("packed", "rows", "reference")
    way = ways[max(ways.index(own.way), ways.index(before.way))]
    note = own.note or before.note
    return TwoModels(
        model, kind, way, note, memory_gb, None, own.fallbacks,
        base=before, own=own, differing=differing,
    )  # fmt: skip


def _model_of(plan: Plan, run: str) -> str:
    return plan.base_of(plan[run]).model


def _asked(readouts: Mapping[str, Readout], runs: Sequence[BaseRun | DerivedRun]) -> tuple[Readout, ...]:
    return tuple(readouts[run.id] for run in runs if run.id in readouts)


def _values(model: Model, site: str, length: int) -> int:
    if is_weights(site):
        return 0
    if site == "pattern":
        return model.anatomy.n_heads * length * length
    return length * prod(size for size in model.shape(site) if isinstance(size, int))


def _rows(value: Tensor, positions: tuple[int, ...], site: str) -> Tensor:
    index = torch.as_tensor(positions, device=value.device)
    return value[:, index].transpose(0, 1) if site == "pattern" else value[index]

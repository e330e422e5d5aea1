"""Holding an executor to the reference executor, and plans that are a little wrong, which must not pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from engramscope.engine import reference
from engramscope.engine.executor import Executor, make_executor
from engramscope.engine.plan import FromRun, Noise, Patch, Plan
from engramscope.models import Model
from engramscope.models.fused import FusedLinears
from tests.engine.plans import Choices, some


class AnyExecutor(Protocol):
    """What the comparison asks of an executor."""

    def execute(
        self, plan: Plan, columns: Mapping[str, tuple[int, ...]] | None = None, skip_identities: bool = True
    ) -> Iterable[Any]: ...


@dataclass(frozen=True)
class Changed:
    """The reference executor on another plan than it was given: it must not pass for an executor."""

    model: Model
    change: Callable[[Plan], Plan]

    def execute(
        self, plan: Plan, columns: Mapping[str, tuple[int, ...]] | None = None, skip_identities: bool = True
    ) -> Iterable[Any]:
        return reference.execute(self.model, self.change(plan))


def quickest_executor(model: Model, memory_gb: float = 4.0) -> Executor:
    """The executor of a model, with every shortcut taken that otherwise pays only for many tokens."""
    executor = make_executor(model, memory_gb=memory_gb)
    if executor._way is None:
        return executor
    fused = FusedLinears(model, torch.tensor([[3, 5]], device=model.device), least=0)
    return replace(executor, _way=replace(executor._way, fused=fused))


def reference_logits(model: Model, plan: Plan) -> dict[str, Tensor]:
    """run -> [positions, vocab] of the reference executor."""
    return {run: row for answered in reference.execute(model, plan) for run, row in zip(*_rows(answered), strict=True)}


@contextmanager
def _routers(model: Model) -> Iterator[list[float]]:
    """How clearly the routers of a mixture of experts decide, at their least clear: in probability.

    Where the last expert that is taken and the first that is not are equal but for rounding, rounding decides between
    two different results, and neither is wrong.
    """
    margins = [1.0]

    def look(module: Any, args: tuple[Tensor, ...], _output: Any) -> None:
        given = args[0].reshape(-1, args[0].shape[-1])
        sizes = torch.nn.functional.linear(given, module.weight, getattr(module, "bias", None)).softmax(-1)
        largest = sizes.topk(module.top_k + 1).values
        margins.append(float((largest[:, -2] - largest[:, -1]).min()))

    routers = [module for module in model.hf.modules() if type(module).__name__.endswith("Router")]
    handles = [router.register_forward_hook(look) for router in routers]
    try:
        yield margins
    finally:
        for handle in handles:
            handle.remove()


def compare(
    model: Model,
    plan: Plan,
    executor: AnyExecutor,
    *,
    columns: Mapping[str, tuple[int, ...]] | None = None,
    skip_identities: bool = True,
    tolerance: float | None = None,
) -> float:
    """Hold an executor to the reference executor: the same runs, each once, and the same logits.

    Args:
        model: the model.
        plan: what is run.
        executor: the executor under test.
        columns: token ids that it is asked for, by run.
        skip_identities: passed on.
        tolerance: largest difference; by the type of the model and the size of its logits if not given.

    Returns:
        The largest difference; 0 where rounding decides what the model does, so that nothing can be compared.

    Raises:
        AssertionError: they disagree; with the plan.
    """
    with _routers(model) as margins:
        wanted = reference_logits(model, plan)
    if min(margins) < 1e-6:
        return 0.0
    allowed = tolerance if tolerance is not None else _allowed(model, wanted)
    seen: dict[str, float] = {}
    for answered in executor.execute(plan, columns=columns, skip_identities=skip_identities):
        runs, logits = _rows(answered)
        assert not answered.trouble, f"trouble where there is none: {answered.trouble}"
        token_ids = _token_ids(answered, columns)
        for run, row in zip(runs, logits, strict=True):
            assert run not in seen, f"{run} is answered twice\n{shown(plan)}"
            assert run in wanted, f"{run} is answered, but was not asked for\n{shown(plan)}"
            right = wanted[run] if token_ids is None else wanted[run][:, token_ids]
            assert row.shape == right.shape, f"{run}: {tuple(row.shape)}, not {tuple(right.shape)}\n{shown(plan)}"
            seen[run] = float((row.to(right) - right).abs().max())
    assert set(seen) == set(wanted), f"not answered: {sorted(set(wanted) - set(seen))}\n{shown(plan)}"
    bad = {run: difference for run, difference in seen.items() if not difference <= allowed}
    assert not bad, f"{model.name}: different logits, by run: {bad}\n{shown(plan)}"
    return max(seen.values(), default=0.0)


def _allowed(model: Model, wanted: Mapping[str, Tensor]) -> float:
    """1e-4 in float32, as long as the logits are of order 10; 1e-9 in float64."""
    if model.dtype == torch.float64:
        return 1e-9
    return 1e-4 * max(1.0, max((float(row.abs().max()) for row in wanted.values() if row.numel()), default=0.0) / 10)


def _rows(answered: Any) -> tuple[tuple[str, ...], Tensor]:
    return answered.runs, answered.logits


def _token_ids(answered: Any, columns: Mapping[str, tuple[int, ...]] | None) -> Tensor | None:
    """The tokens that the last axis of the logits stands for; every one asked for must be among them."""
    if columns is None:
        assert answered.columns is None, "columns where none were asked for"
        return None
    if answered.columns is None:
        return None
    asked = {token for run in answered.runs for token in columns[run]}
    given = answered.columns.tolist()
    assert asked <= set(given), f"columns {given} are not all of {sorted(asked)}, for {answered.runs}"
    assert given == sorted(set(given)), f"the columns are not ascending: {given}"
    return answered.columns.cpu()


def random_columns(c: Choices, plan: Plan, vocab: int) -> dict[str, tuple[int, ...]]:
    """One to four token ids for every run that is read."""
    return {readout.run: some(c, range(vocab), c.integer(1, 4)) for readout in plan.readouts}


def shown(plan: Plan) -> str:
    """The plan for a person who must find out why it fails."""
    lines = []
    for base in plan.bases:
        noise = f", noise at {base.noise.positions}" if base.noise else ""
        lines.append(f"  {base.id}: {base.tokens}{noise}")
    for run in plan.derived:
        lines.append(f"  {run.id} of {run.base}:")
        for p in run.patches:
            of = p.source
            what = f"{of.run}{of.positions}" if isinstance(of, FromRun) else f"constant {tuple(of.values.shape)}"
            lines.append(f"    {p.site} layer {p.layer} heads {p.heads} positions {p.positions} <- {what}")
    return "\n".join(["plan:", *lines, *(f"  read {r.run}{r.positions}" for r in plan.readouts)])


def mutations(plan: Plan) -> Iterator[tuple[str, Plan]]:
    """The plan with one thing changed that an executor could get wrong, for every such thing."""
    for index, run in enumerate(plan.derived):
        for name, patches in _wrong_patches(run.patches):
            wrong = (*plan.derived[:index], replace(run, patches=patches), *plan.derived[index + 1 :])
            yield f"{run.id}: {name}", Plan(plan.bases, wrong, plan.readouts)
    for index, base in enumerate(plan.bases):
        if base.noise is not None:
            louder = replace(base, noise=Noise(base.noise.positions, base.noise.values.flip(-1)))
            bases = (*plan.bases[:index], louder, *plan.bases[index + 1 :])
            yield f"{base.id}: other noise", Plan(bases, plan.derived, plan.readouts)
    for index, readout in enumerate(plan.readouts):
        if len(readout.positions) > 1:
            turned = replace(readout, positions=readout.positions[::-1])
            readouts = (*plan.readouts[:index], turned, *plan.readouts[index + 1 :])
            yield f"{readout.run}: read in another order", Plan(plan.bases, plan.derived, readouts)


def _wrong_patches(patches: tuple[Patch, ...]) -> Iterator[tuple[str, tuple[Patch, ...]]]:
    for index, patch in enumerate(patches):
        before, after = patches[:index], patches[index + 1 :]
        yield f"patch {index} left out", (*before, *after)
        if len(patch.positions) > 1 and isinstance(patch.source, FromRun):
            turned = FromRun(patch.source.run, patch.source.positions[::-1])
            yield f"patch {index}: positions exchanged", (*before, replace(patch, source=turned), *after)
        if patch.heads is not None:
            yield f"patch {index}: all heads", (*before, replace(patch, heads=None), *after)
    if len(patches) > 1:
        yield "patches in the opposite order", patches[::-1]


def smallest(plan: Plan, fails: Callable[[Plan], bool]) -> Plan:
    """A plan that still fails though anything more that is left out of it makes it pass."""
    while True:
        simpler = next((part for part in _simpler(plan) if fails(part)), None)
        if simpler is None:
            return plan
        plan = simpler


def _simpler(plan: Plan) -> Iterator[Plan]:
    """The plan without one of its parts, wherever nothing else needs that part."""
    for kept in _without_one(plan.readouts):
        yield Plan(plan.bases, plan.derived, kept)
    for name in ("derived", "bases"):
        for kept in _without_one(getattr(plan, name)):
            try:
                yield replace(plan, **{name: kept})
            except ValueError:
                continue  # somebody reads that run
    for index, run in enumerate(plan.derived):
        for patches in (*_without_one(run.patches), *_with_less(run.patches)):
            derived = (*plan.derived[:index], replace(run, patches=patches), *plan.derived[index + 1 :])
            yield Plan(plan.bases, derived, plan.readouts)
    for index, readout in enumerate(plan.readouts):
        for positions in _without_one(readout.positions) if len(readout.positions) > 1 else ():
            less = replace(readout, positions=positions)
            yield Plan(plan.bases, plan.derived, (*plan.readouts[:index], less, *plan.readouts[index + 1 :]))


def _with_less(patches: tuple[Patch, ...]) -> Iterator[tuple[Patch, ...]]:
    for index, patch in enumerate(patches):
        less: list[Patch] = []
        if isinstance(patch.source, FromRun) and len(patch.positions) > 1:
            kept = zip(_without_one(patch.positions), _without_one(patch.source.positions), strict=True)
            run = patch.source.run
            less += [replace(patch, positions=ours, source=FromRun(run, theirs)) for ours, theirs in kept]
        if patch.heads is not None and len(patch.heads) > 1:
            less += [replace(patch, heads=heads) for heads in _without_one(patch.heads)]
        for one in less:
            yield (*patches[:index], one, *patches[index + 1 :])


def _without_one(items: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    return [(*items[:index], *items[index + 1 :]) for index in range(len(items))]

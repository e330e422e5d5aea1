"""The traversal: a whole plan in one passage through the model.

All base runs go through the model side by side. After each block, the same block is called on the tokens of all derived
runs that differ by then; what they share with their base is looked up, not computed again. See `docs/architecture.md`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engramscope.engine.answered import Answered
from engramscope.engine.attention import PackedAttention
from engramscope.engine.budget import Budget, passes
from engramscope.engine.gather import index_tensor, placeholder, without_tensor
from engramscope.engine.index import RunIndex
from engramscope.engine.plan import Plan
from engramscope.engine.resolve import Resolved, resolve
from engramscope.engine.shortcuts import Shortcuts
from engramscope.engine.stem import stem_index, stem_taps
from engramscope.engine.tail import Tail
from engramscope.engine.wave import Wave
from engramscope.engine.writes import Store
from engramscope.errors import out_of_memory
from engramscope.models.drive import passed_by, visited
from engramscope.models.families._base import AttentionRoute
from engramscope.models.fused import FusedLinears, fused_activations
from engramscope.models.hooks import taps, with_output
from engramscope.models.model import Model
from engramscope.models.offload import held


class _ThroughError(Exception):
    """Raised after the last block: what the model would do with its own residual stream is of no use."""


@dataclass(frozen=True)
class Way:
    """How a traversal goes through one model.

    Attributes:
        model: the model.
        forms: what its blocks return (`example_outputs`).
        route: how its attention is taken over; None where runs are rows of a padded batch.
        narrow: whether the head can be applied to some of its columns alone.
        plain: whether the architecture's attention is the plain one.
        shortcuts: what need not be computed of runs that begin in the middle of a block.
        fused: modules that one kernel computes together.
    """

    model: Model
    forms: tuple[Any, ...]
    route: AttentionRoute | None
    narrow: bool = False
    plain: bool = False
    shortcuts: Shortcuts | None = None
    fused: FusedLinears | None = None

    def answer(self, layer: int, value: Tensor) -> Any:
        """What a block returns, with `value` as its residual stream."""
        return with_output(self.forms[layer], value)


def execute(
    way: Way,
    plan: Plan,
    budget: Budget,
    columns: Mapping[str, tuple[int, ...]] | None = None,
    *,
    skip_identities: bool = True,
) -> Iterator[Answered]:
    """Run everything in `plan` and yield the logits that it asks for.

    Args:
        way: how to go through the model.
        plan: runs and read-outs.
        budget: what may be held at a time; more is done in several passages.
        columns: run id -> token ids whose logits are wanted; None for the whole vocabulary.
        skip_identities: do not compute what a patch leaves as it was.

    Yields:
        `Answered`, in no particular order; every read-out once.

    Raises:
        SiteError: the model does not offer a patched site.
        UnsupportedPlanError: one traversal cannot follow the plan.
    """
    for part in passes(way.model, plan, budget.memory, way.route is not None):
        yield from _with_less(way, part, budget, columns, skip_identities)


def _with_less(
    way: Way, plan: Plan, budget: Budget, columns: Mapping[str, tuple[int, ...]] | None, skip: bool
) -> Iterator[Answered]:
    """A passage; where the memory runs out before anything was answered, two with half of everything."""
    done: set[str] = set()
    try:
        for answered in _passage(way, plan, budget, columns, skip):
            done.update(answered.runs)
            yield answered
        return
    except RuntimeError as error:
        left = tuple(readout for readout in plan.readouts if readout.run not in done)
        if not out_of_memory(error) or (budget.tokens == 1 and len(left) == 1):
            raise
    if way.model.device.type == "cuda":
        torch.cuda.empty_cache()
    less = budget.halved()
    half = (len(left) + 1) // 2
    for readouts in (left[:half], left[half:]):
        if readouts:
            yield from _with_less(way, Plan(plan.bases, plan.derived, readouts), less, columns, skip)


def _passage(
    way: Way, plan: Plan, budget: Budget, columns: Mapping[str, tuple[int, ...]] | None, skip: bool
) -> Iterator[Answered]:
    with torch.no_grad():
        work = resolve(way.model, plan, packed=way.route is not None, skip_identities=skip)
        store = Store(work.reads)
        wave = _through_blocks(way, work, store, budget)
        tail = Tail(way.model, way.forms, work, store, wave.stream, budget.tail_rows(way.model), columns, way.narrow)
        trouble = _trouble(work, wave)
    answers = tail.answers()
    while True:
        # no gradients while something is computed, and the caller's own setting while the caller has its turn
        with torch.no_grad():
            answered = next(answers, None)
        if answered is None:
            return
        found = {run: trouble[run] for run in answered.runs if run in trouble}
        yield Answered(answered.runs, answered.logits, answered.columns, found)


def _through_blocks(way: Way, work: Resolved, store: Store, budget: Budget) -> Wave:
    """Carry all runs through the stem and the blocks."""
    attention = None if way.route is None else PackedAttention(way.route, plain=way.plain)
    return _driven(way, work, store, budget, attention)


def _driven(way: Way, work: Resolved, store: Store, budget: Budget, attention: PackedAttention | None) -> Wave:
    model, layout, runs = way.model, work.layout, RunIndex(work)
    masks = [] if way.route is None else _masks(way, layout.longest)
    fused = way.fused if way.fused is not None and way.fused.n_bytes <= budget.memory / 8 else None
    wave = Wave(model, work, runs, store, attention, masks, budget.tokens, way.shortcuts, fused)
    index = stem_index(work, runs)
    shape = (1, len(index)) if attention is not None else (len(index) // layout.longest, layout.longest)
    tokens = index_tensor(layout.ids[index], model.device).view(shape)
    given: dict[str, Any] = {"input_ids": tokens, "use_cache": False}
    if attention is not None:
        given["position_ids"] = index_tensor(layout.positions[index], model.device).view(shape)
    last = model.anatomy.n_layers - 1

    def visitor(layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden, others, named = without_tensor(args, kwargs)
        if layer == 0:
            wave.begin(hidden.flatten(0, 1))
        with held(model.blocks[layer]):
            wave.layer(layer, others, named, shape[1] if attention is not None else shape[0])
        if layer == last:
            raise _ThroughError
        return way.answer(layer, hidden)

    with ExitStack() as stack:
        if way.route is not None and attention is not None:
            modules = [model.hf.get_submodule(path) for path in model.anatomy.attention]
            stack.enter_context(way.route.rerouted(model.hf, modules, attention))
        stack.enter_context(fused_activations(model.hf))
        stack.enter_context(taps(model, stem_taps(model, work, runs)))
        stack.enter_context(visited(model.blocks, visitor))
        try:
            model.hf(**given)
        except _ThroughError:
            pass
        finally:
            if attention is not None:
                attention.end()
    return wave


def attention_is_plain(way: Way, plan: Plan, budget: Budget) -> bool:
    """Whether, in a passage of `plan`, every block's attention was `softmax(scaling q kᵀ + mask) v` and no more.

    Half precision is left to the architecture's own function: torch's kernel rounds less often, and so differently.
    """
    if way.route is None or way.model.dtype not in (torch.float32, torch.float64):
        return False
    attention = PackedAttention(way.route, compare=True)
    with torch.no_grad():
        work = resolve(way.model, plan, packed=True)
        _driven(way, work, Store(work.reads), budget, attention)
    return attention.differs <= 1e-5


def _masks(way: Way, longest: int) -> list[Tensor]:
    """For each layer, what a plain run of the longest length adds to its attention scores [longest, longest]."""
    model, found = way.model, dict[int, Tensor]()
    modules = [model.hf.get_submodule(path) for path in model.anatomy.attention]
    assert way.route is not None

    def visitor(layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        masks = [value for value in tensors if value.shape == (1, 1, longest, longest)]
        if len(masks) != 1:
            raise RuntimeError(f"the block of layer {layer} is given no attention mask")
        found[layer] = masks[0][0, 0]
        if layer == model.anatomy.n_layers - 1:
            raise _ThroughError

    token = placeholder(model, 1, longest)
    with suppress(_ThroughError):
        passed_by(model.hf, model.blocks, way.forms, token, visitor)
    return [way.route.mask(module, found[layer]) for layer, module in enumerate(modules)]


def _trouble(work: Resolved, wave: Wave) -> dict[str, str]:
    """A sentence for every run of which a value was not finite; one look at the device for all."""
    never, found = wave.n_layers, dict[str, str]()
    base, own = wave.bad_base.cpu().numpy(), wave.bad_own.cpu().numpy()
    if (base == never).all() and (own == never).all():
        return found

    def note(run: str, first: int) -> None:
        if first < never:
            found[run] = f"run {run!r} has a value that is not finite after layer {first}"

    layout = work.layout
    of_base = {run: int(base[layout.table[row, : layout.end[row]]].min()) for run, row in layout.row.items()}
    for run, first in of_base.items():
        note(run, first)
    for run in work.runs:
        prefix = base[layout.table[run.row, : run.start]]
        note(run.id, min(int(own[run.offset : run.offset + run.tokens].min()), int(prefix.min(initial=never))))
    for run, of in work.alias.items():
        note(run, of_base[of])
    return found

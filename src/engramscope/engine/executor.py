"""Choose how a model's runs are executed, after trying it out on a few tokens of the model itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import nn

from engramscope.engine import reference, traversal
from engramscope.engine.answered import Answered
from engramscope.engine.budget import Budget, budget_for
from engramscope.engine.plan import BaseRun, DerivedRun, FromRun, Patch, Plan, Readout
from engramscope.engine.shortcuts import Shortcuts
from engramscope.engine.stages import UnsupportedPlanError
from engramscope.engine.traversal import Way
from engramscope.errors import ModelError
from engramscope.models.drive import example_outputs
from engramscope.models.fused import FusedLinears
from engramscope.models.model import Model
from engramscope.models.probe import random_tokens
from engramscope.models.routes import route_of
from engramscope.models.site import GLOBAL_SITES

Kind = Literal["traversal", "reference"]
#: rounding that may differ between two orders of the same sums, relative to the largest logit
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1.5e-1}
_TRIAL_BUDGET = Budget(2.0**30, 64)
#: sites of the trial: one for every way in which a run can begin to differ
_TRIED = ("embed", "resid_pre", "k", "v", "q", "pattern", "z", "attn_out", "resid_mid", "mlp_out", "resid_post")


@dataclass(frozen=True)
class Executor:
    """Executes plans on one model. Made by `make_executor`.

    Attributes:
        model: the model.
        kind: what was asked for.
        way: how it is done: "packed" (tokens of all runs side by side), "rows" (rows of padded batches, born at their
            first patched layer) or "reference" (a whole forward for every run).
        note: why it is not done the fastest way; "" where it is.
        memory_gb: what may be added to the model, in GiB.
        fallbacks: why some runs were given whole forwards nevertheless; filled as plans are executed.
    """

    model: Model
    kind: Kind
    way: Literal["packed", "rows", "reference"]
    note: str
    memory_gb: float
    _way: Way | None = None
    fallbacks: set[str] = field(default_factory=set, compare=False)

    def whole_forwards(self) -> Executor:
        """The same model, every run by a forward of its own."""
        return make_executor(self.model, "reference", self.memory_gb)

    def execute(
        self,
        plan: Plan,
        columns: Mapping[str, tuple[int, ...]] | None = None,
        *,
        skip_identities: bool = True,
    ) -> Iterator[Answered]:
        """Run everything in `plan` and yield the logits that it asks for.

        Args:
            plan: runs and read-outs.
            columns: run id -> token ids whose logits are wanted; None for the whole vocabulary. The reference executor
                always gives the whole vocabulary.
            skip_identities: do not compute what a patch leaves as it was. False measures numerical noise.

        Yields:
            `Answered`; every read-out once, in an order of the executor's choice.

        Raises:
            ModelError: the model is in training mode, or a part of it is: dropout would be taken for an effect.
            SiteError: the model does not offer a patched site.
        """
        ensure_evaluation(self.model.hf, self.model.name)
        left = plan
        if self._way is not None and plan.readouts:
            done: set[str] = set()
            longest = max((len(base.tokens) for base in plan.bases), default=1)
            budget = budget_for(self.model, self.memory_gb, longest)
            try:
                for answered in traversal.execute(self._way, plan, budget, columns, skip_identities=skip_identities):
                    done.update(answered.runs)
                    yield answered
                return
            except UnsupportedPlanError as error:
                self.fallbacks.add(str(error))
                left = Plan(plan.bases, plan.derived, tuple(one for one in plan.readouts if one.run not in done))
        yield from reference.execute(self.model, left)


def make_executor(model: Model, kind: Kind = "traversal", memory_gb: float = 4.0) -> Executor:
    """Find the fastest way that gives the same logits as the reference executor on this model.

    A handful of short runs with a patch at every kind of site goes both ways. Where they differ by more than rounding,
    or the traversal cannot be done, the next slower way is tried; `Executor.note` says why.

    Args:
        model: the model.
        kind: "traversal", or "reference" for whole forwards.
        memory_gb: what may be added to the model, in GiB.

    Raises:
        ModelError: the model is in training mode.
    """
    ensure_evaluation(model.hf, model.name)
    if kind == "reference":
        return Executor(model, kind, "reference", "", memory_gb)
    if any(block._forward_hooks or block._forward_pre_hooks for block in model.blocks):
        note = "Hooks of your own are on the model's blocks, and every run must pass them"
        return Executor(model, kind, "reference", note, memory_gb)
    name, note, way = model.remember("way", lambda: _find_way(model))
    return Executor(model, kind, name, note, memory_gb, way)


def _find_way(model: Model) -> tuple[Literal["packed", "rows", "reference"], str, Way | None]:
    """The quickest way that does on this model, and why no quicker one does."""
    trial, forms, note = _trial(model), _forms(model), ""
    wanted = _logits(reference.execute(model, trial))
    names: tuple[Literal["packed", "rows"], ...] = ("packed", "rows")
    for name in names:
        route = route_of(model.anatomy) if name == "packed" else None
        if name == "packed" and route is None:
            note = f"the attention of {type(model.hf).__name__} is not on the attention interface of transformers"
            continue
        way = _quickest(Way(model, forms, route), trial, wanted)
        if isinstance(way, Way):
            return name, note, way
        note = "; ".join(part for part in (note, f"{name}: {way}") if part)
    return "reference", note, None


def _quickest(way: Way, trial: Plan, wanted: Mapping[str, torch.Tensor]) -> Way | str:
    """The same way with every shortcut that gives the same logits, or why even the bare way does not do."""
    try:
        plain = traversal.attention_is_plain(way, trial, _TRIAL_BUDGET)
    except Exception:  # noqa: BLE001 - what an architecture does not bear shows, with its reason, below
        plain = False
    narrow = isinstance(way.model.hf.get_submodule(way.model.anatomy.head), nn.Linear)
    why = ""
    tokens = random_tokens(way.model.hf, 1, 2, seed=21)
    shortcuts, fused = Shortcuts(way.model, tokens), FusedLinears(way.model, tokens, least=0)
    every = replace(way, shortcuts=shortcuts, plain=plain, narrow=narrow, fused=fused)
    for tried in (every, replace(every, fused=None), replace(way, narrow=narrow), way):
        why = _why_not(tried, trial, wanted)
        if not why:
            return replace(tried, fused=None if tried.fused is None else FusedLinears(way.model, tokens))
    return why


def ensure_evaluation(hf: nn.Module, name: str) -> None:
    """Refuse a model of which any part is in training mode.

    Raises:
        ModelError: names the first such module.
    """
    training = next((path for path, module in hf.named_modules() if module.training), None)
    if training is not None:
        where = f"its module {training}" if training else "it"
        raise ModelError(
            f"{name} cannot be patched while {where} is in training mode: dropout would be taken for an effect. "
            "Call model.hf.eval() first."
        )


def _forms(model: Model) -> tuple[object, ...]:
    return tuple(example_outputs(model.hf, model.blocks, random_tokens(model.hf, 1, 2, seed=21)))


def _trial(model: Model) -> Plan:
    """Prompts of two lengths that share a beginning, patched at every kind of site, here and there in the model."""
    tokens = [int(token) for token in random_tokens(model.hf, 1, 12, seed=22)[0]]
    prompts = {"one": tuple(tokens[:6]), "other": (*tokens[:2], tokens[7], *tokens[3:6]), "short": tuple(tokens[8:12])}
    bases = tuple(BaseRun(name, ids) for name, ids in prompts.items())
    ways = [("one", "other", (2, 3)), ("other", "one", (4,)), ("short", "one", (1,))]
    derived: list[DerivedRun] = []
    for number, site in enumerate(site for site in _TRIED if site in model.sites):
        last = model.anatomy.n_layers - 1
        layer = None if site in GLOBAL_SITES else (0, last // 2, last)[number % 3]
        for base, source, positions in (ways[0], ways[1 + number % (1 if site == "pattern" else 2)]):
            patch = Patch(site, layer, positions, FromRun(source, positions))
            derived.append(DerivedRun(f"{len(derived)}", base, (patch,)))
    readouts = [Readout(name, (len(ids) - 1,)) for name, ids in prompts.items()]
    readouts += [Readout(run.id, (len(prompts[run.base]) - 1,)) for run in derived]
    return Plan(bases, tuple(derived), tuple(readouts))


def _logits(answers: Iterator[Answered]) -> dict[str, torch.Tensor]:
    return {run: row for answered in answers for run, row in zip(answered.runs, answered.logits, strict=True)}


def _why_not(way: Way, trial: Plan, wanted: Mapping[str, torch.Tensor]) -> str:
    """Why a way does not do on this model; "" where it does."""
    columns = tuple(range(1, min(way.model.anatomy.vocab, 64))) if way.narrow else None
    per_run = None if columns is None else dict.fromkeys(wanted, columns)
    try:
        found = _logits(traversal.execute(way, trial, _TRIAL_BUDGET, per_run, skip_identities=False))
    except Exception as error:  # noqa: BLE001 - whatever an architecture does not bear, there is a slower way
        return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    theirs, ours = torch.stack(list(wanted.values())), torch.stack([found[run] for run in wanted])
    scale = theirs.abs().amax().clamp(min=torch.finfo(theirs.dtype).tiny)
    worst = float((ours - (theirs if columns is None else theirs[..., list(columns)])).abs().amax() / scale)
    allowed = _TOLERANCE.get(way.model.dtype, 1e-4)
    # a comparison with NaN is False
    return "" if worst <= allowed else f"its logits differ by {worst:.2g} of their size from whole forwards"

"""What the acceptance checks share: models in float64, both executors, two prompts, and two-sided comparison."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from engramscope.corruptions import make_corruption
from engramscope.engine import reference
from engramscope.engine.executor import Executor, Kind, make_executor
from engramscope.engine.plan import BaseRun, DerivedRun, FromRun, Patch, Plan, Readout
from engramscope.locate.cells import Cell, cells_of
from engramscope.locate.experiment import Experiment, set_up
from engramscope.models import Model
from engramscope.models.site import GLOBAL_SITES, HEAD_SITES, KV_SITES
from engramscope.pairs import Pair, PairSet
from engramscope.results.schema import Frame
from engramscope.study_file import SweepSection
from tests.engine.comparing import quickest_executor
from tests.tiny_models import tiny_hf
from tests.tiny_study import pair_rows, tokenizer

#: learned and rotary positions, grouped queries, parallel and sequential blocks, sliding windows, norms behind the
#: modules; gpt_neo does not use the attention interface of transformers
FAMILIES = ("gpt2", "llama", "gpt_neox", "gpt_neo", "gemma2")
KINDS: tuple[Kind, ...] = ("traversal", "reference")
each_executor = pytest.mark.parametrize("kind", KINDS)
each_family_and_executor = pytest.mark.parametrize(("family", "kind"), list(product(FAMILIES, KINDS)))
#: what counts as exact where it is not 1e-9: GPT-Neo computes attention in float32, whatever the type of the model
TOLERANCE = {"gpt_neo": 1e-5}

#: eight tokens, longer than any sliding window of the tiny models, that differ at two positions
CLEAN, CORRUPTED = (13, 11, 25, 17, 42, 19, 60, 33), (13, 11, 70, 17, 42, 81, 60, 33)
CHANGED = (2, 5)
EVERYWHERE = tuple(range(len(CLEAN)))
TOKENS = {"clean": CLEAN, "corrupted": CORRUPTED}
BASES = tuple(BaseRun(name, tokens) for name, tokens in TOKENS.items())
OTHER = {"clean": "corrupted", "corrupted": "clean"}


@dataclass(frozen=True)
class Setting:
    """A model in float64 and one of the two executors.

    Attributes:
        model: the model.
        executor: runs everything.
        tolerance: what counts as exact: 1e-9, or 1e-5 where the family rounds to float32 inside.
    """

    model: Model
    executor: Executor
    tolerance: float

    def run(self, derived: Iterable[DerivedRun], *, skip_identities: bool = True) -> dict[str, Tensor]:
        """Logits [seq, vocab] of these runs and of both base runs."""
        runs = tuple(derived)
        plan = Plan(BASES, runs, tuple(Readout(run.id, EVERYWHERE) for run in (*BASES, *runs)))
        return logits_of(self.executor, plan, skip_identities=skip_identities)

    def plain(self, name: str) -> Tensor:
        """Logits [seq, vocab] of one of the two prompts by the model's own forward, without the package."""
        with torch.no_grad():
            return self.model.hf(input_ids=torch.tensor([TOKENS[name]]), use_cache=False).logits[0]

    def same(self, found: Tensor, wanted: Tensor, what: str = "") -> None:
        """Equal everywhere, within the tolerance."""
        torch.testing.assert_close(
            found, wanted, rtol=0, atol=self.tolerance, msg=lambda text: f"{what} in {self.model.name}: {text}"
        )

    def differ(self, found: Tensor, other: Tensor, what: str = "") -> None:
        """Different, by much more than the tolerance: what `same` says of such values could have failed."""
        largest = float((found - other).abs().max())
        assert largest > 1e-3, f"{what} in {self.model.name}: only {largest:.2g} apart"


@cache
def float64_model(family: str) -> Model:
    return Model.from_parts(tiny_hf(family).double(), name=family)


@cache
def executor_of(model: Model, kind: Kind) -> Executor:
    return as_asked(make_executor(model, kind) if kind == "reference" else quickest_executor(model))


def as_asked(executor: Executor) -> Executor:
    """The executor, which has not fallen back on whole forwards: what it does would be checked against itself."""
    assert (executor.way == "reference") == (executor.kind == "reference"), executor.note
    return executor


def setting_of(family: str, kind: Kind) -> Setting:
    return setting_on(float64_model(family), kind)


def setting_on(model: Model, kind: Kind) -> Setting:
    return Setting(model, executor_of(model, kind), TOLERANCE.get(model.name, 1e-9))


def logits_of(executor: Executor, plan: Plan, *, skip_identities: bool = True) -> dict[str, Tensor]:
    """run -> [positions, vocab]."""
    found: dict[str, Tensor] = {}
    for answered in executor.execute(plan, skip_identities=skip_identities):
        found.update(zip(answered.runs, answered.logits, strict=True))
    assert not executor.fallbacks
    assert set(found) == {readout.run for readout in plan.readouts}
    return found


def values_of(
    model: Model, place: tuple[str, int | None], prompts: Mapping[str, tuple[int, ...]] = TOKENS
) -> dict[str, Tensor]:
    """What a site holds in these runs: run -> [seq, width], or [n_heads, query, key]."""
    bases = [BaseRun(name, tokens) for name, tokens in prompts.items()]
    return {run: value for run, _, value in reference.record(model, bases, [place])}


def layers_of(model: Model, site: str) -> Sequence[int | None]:
    return [None] if site in GLOBAL_SITES else range(model.anatomy.n_layers)


def places_of(model: Model, *sites: str) -> Iterator[tuple[str, int | None, tuple[int, ...] | None]]:
    """(site, layer, heads) of every site, of all heads jointly and of each alone."""
    for site in sites or model.sites:
        count = model.anatomy.n_kv_heads if site in KV_SITES else model.anatomy.n_heads
        for layer in layers_of(model, site):
            yield site, layer, None
            if site in HEAD_SITES:
                yield from ((site, layer, (head,)) for head in range(count))


def taken(
    run: str,
    site: str,
    layer: int | None,
    positions: Sequence[int] = EVERYWHERE,
    heads: tuple[int, ...] | None = None,
) -> Patch:
    """A patch whose values are those of `run` at the same positions."""
    return Patch(site, layer, tuple(positions), FromRun(run, tuple(positions)), heads)


# ----------------------------------------------------------------------------------- sweeps over pairs of texts


@cache
def text_model(family: str, dtype: torch.dtype = torch.float64) -> Model:
    """A random model with a tokenizer."""
    words = tokenizer(bos=family != "gpt2")
    return Model.from_parts(tiny_hf(family, vocab_size=len(words)).to(dtype), words, name=family)


def text_pairs(count: int = 6, sentences: int = 3) -> PairSet:
    """Pairs in which one name is exchanged, of as many lengths as there are sentences."""
    return PairSet(tuple(
        Pair(**{**row, "correct": tuple(row["correct"]), "incorrect": tuple(row["incorrect"])})
        for row in pair_rows(count, sentences)
    ))  # fmt: skip


def experiment_of(
    model: Model,
    pairs: PairSet,
    kind: Kind,
    metrics: Sequence[str] = ("logit_diff",),
    corruption: str = "str",
    options: Mapping[str, Any] | None = None,
) -> Experiment:
    how = make_corruption(corruption, dict(options or {}))
    experiment = set_up(model, pairs, how, corruption, metrics, executor=kind)
    as_asked(experiment.executor)
    return experiment


def sweep_cells(experiment: Experiment, site: str, **declared: Any) -> list[Cell]:
    sweep = SweepSection.model_validate({"name": site, "site": site, **declared})
    return list(cells_of(sweep, experiment.model.anatomy, [pair.tokens for pair in experiment.prepared]))


def effects_of(experiment: Experiment, cells: Sequence[Cell]) -> Frame:
    """The effects table of these cells; every row has a number."""
    parts = [pd.DataFrame(experiment.run(chunk)) for chunk in experiment.chunks(cells, "acceptance")]
    assert not experiment.executor.fallbacks
    table: Frame = pd.concat(parts, ignore_index=True)
    assert len(table)
    assert table["status"].eq("ok").all(), table["status"].unique()
    return table


def sweep(experiment: Experiment, site: str, **declared: Any) -> Frame:
    """The effects table of a sweep, declared as in a study file."""
    return effects_of(experiment, sweep_cells(experiment, site, **declared))


def with_memory(experiment: Experiment, gb: float) -> Experiment:
    """The same experiment with other bounds on its batches."""
    return replace(experiment, executor=replace(experiment.executor, memory_gb=gb))


@contextmanager
def counted(model: Model) -> Iterator[list[int]]:
    """How often the model's last block is called, in a list of one number."""
    calls = [0]

    def count(_module: Any, _args: Any) -> None:
        calls[0] += 1

    handle = model.blocks[-1].register_forward_pre_hook(count)
    try:
        yield calls
    finally:
        handle.remove()


def numbers(table: Frame, column: str) -> Tensor:
    """A column as a tensor in float64; there is no number for null."""
    return torch.tensor(table[column].to_numpy(dtype=float), dtype=torch.float64)


def identical(found: Tensor, wanted: Tensor | float, tolerance: float = 1e-9) -> None:
    """Equal everywhere."""
    wanted = wanted if isinstance(wanted, Tensor) else torch.full_like(found, wanted)
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)

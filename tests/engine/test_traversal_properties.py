"""Random plans on random models of every family: the traversal executor gives what the reference executor gives."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

from engramscope.engine.plan import Plan
from engramscope.models import Model
from tests.engine.comparing import (
    Changed,
    compare,
    mutations,
    quickest_executor,
    random_columns,
    reference_logits,
    shown,
    smallest,
)
from tests.engine.plans import Seeded, plans, seeded_plan
from tests.tiny_models import FAMILIES, tiny_hf, tiny_model

#: so little that a plan of a few runs goes through the model in many pieces
LITTLE_GB = 1e-4
IN_FLOAT64 = ("gpt2", "llama", "gemma2", "gptj", "bloom", "gpt_oss", "mistral", "gpt_neox", "falcon_alibi")
FORWARD_LOOKING = ("gpt2", "llama_mqa", "gemma3", "gptj", "gpt_neo", "bloom", "falcon_alibi", "gpt_oss")


@cache
def executor_of(model: Model, memory_gb: float = 4.0) -> Any:
    return quickest_executor(model, memory_gb)


@cache
def float64_model(family: str) -> Model:
    hf = tiny_hf(family).double()
    if family == "gpt_oss":  # its fused experts know no float64
        hf.set_experts_implementation("eager")
    return Model.from_parts(hf, name=f"{family} in float64")


def for_random_plans(model: Model, examples: int, check: Callable[[Plan], object], causal: bool = True) -> None:
    """`check` on this many random plans, always the same ones; a plan that fails is shown without what it can miss.

    Hypothesis would take minutes to make a plan smaller choice by choice; `smallest` leaves out whole parts of it.
    """

    failed: list[Plan] = []

    def fails(plan: Plan) -> bool:
        try:
            check(plan)
        except Exception:  # noqa: BLE001 - whatever is wrong with it
            return True
        return False

    @seed(zlib.crc32(model.name.encode()))
    @settings(
        max_examples=examples, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    )  # fmt: skip
    @given(plans(model, causal))
    def run(plan: Plan) -> None:
        if not failed and fails(plan):
            failed.append(plan)

    run()
    for plan in failed:
        simple = smallest(plan, fails)
        try:
            check(simple)
        except Exception as error:
            error.add_note(shown(simple))
            raise


@pytest.mark.parametrize("family", FAMILIES)
def test_any_plan_gives_the_logits_of_the_reference(family: str) -> None:
    model = tiny_model(family)
    for_random_plans(model, 18, lambda plan: compare(model, plan, executor_of(model)))


@pytest.mark.parametrize("family", FAMILIES)
def test_little_memory_changes_nothing(family: str) -> None:
    model = tiny_model(family)
    executor = executor_of(model, LITTLE_GB)
    for_random_plans(model, 5, lambda plan: compare(model, plan, executor, skip_identities=False))


@pytest.mark.parametrize("family", FAMILIES)
def test_columns_are_those_of_the_whole_vocabulary(family: str) -> None:
    model = tiny_model(family)
    executor = executor_of(model)

    def check(plan: Plan) -> None:
        number = len(plan.derived) + sum(plan.bases[0].tokens)
        columns = random_columns(Seeded(number), plan, model.anatomy.vocab)
        compare(model, plan, executor, columns=columns, skip_identities=False)

    for_random_plans(model, 5, check)


@pytest.mark.parametrize("family", IN_FLOAT64)
def test_in_float64_nothing_but_the_last_digits_differs(family: str) -> None:
    model = float64_model(family)
    tolerance = 1e-5 if family == "gptj" else None  # GPT-J attends in float32, whatever its type
    for_random_plans(model, 12, lambda plan: compare(model, plan, executor_of(model), tolerance=tolerance))


@pytest.mark.parametrize("family", FORWARD_LOOKING)
def test_attention_weights_that_look_ahead_are_written_as_given(family: str) -> None:
    """No sweep makes such a row, but a plan can say it."""
    model = tiny_model(family)
    for_random_plans(model, 8, lambda plan: compare(model, plan, executor_of(model)), causal=False)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "mixtral", "bloom"])
@pytest.mark.parametrize("memory_gb", [4.0, 1e-3, LITTLE_GB])
def test_many_runs_that_read_from_each_other(family: str, memory_gb: float) -> None:
    model = tiny_model(family)
    for number in range(2):
        plan = seeded_plan(model, 1000 + number, most_runs=60)
        columns = random_columns(Seeded(number), plan, model.anatomy.vocab)
        compare(model, plan, executor_of(model, memory_gb))
        compare(model, plan, executor_of(model, memory_gb), columns=columns)


@pytest.mark.parametrize("family", ["gpt2", "llama_mqa"])
def test_an_executor_that_is_a_little_wrong_does_not_pass(family: str) -> None:
    model = tiny_model(family)
    made, noticed = 0, 0
    for number in range(4):
        plan = seeded_plan(model, number)
        right = reference_logits(model, plan)
        for name, wrong in mutations(plan):
            other = reference_logits(model, wrong)
            differ = any(float((other[run] - right[run]).abs().max()) > 1e-3 for run in right)
            made, noticed = made + 1, noticed + differ
            if differ:
                with pytest.raises(AssertionError, match="different logits"):
                    compare(model, plan, Changed(model, lambda _, wrong=wrong: wrong))
            else:
                compare(model, plan, Changed(model, lambda _, wrong=wrong: wrong), tolerance=1e-3)
            assert name
    assert made > 40
    assert noticed > 0.4 * made, "the plans read too little of what they change"


def test_runs_that_are_missing_doubled_or_not_asked_for_do_not_pass() -> None:
    model = tiny_model("gpt2")
    plan = seeded_plan(model, 3)
    assert len(plan.readouts) >= 2
    fewer = Plan(plan.bases, plan.derived, plan.readouts[1:])
    with pytest.raises(AssertionError, match="not answered"):
        compare(model, plan, Changed(model, lambda _: fewer))
    with pytest.raises(AssertionError, match="not asked for"):
        compare(model, fewer, Changed(model, lambda _: plan))

    class Twice(Changed):
        def execute(self, *args: Any, **kwargs: Any) -> Any:
            return [*super().execute(*args, **kwargs), *super().execute(*args, **kwargs)]

    with pytest.raises(AssertionError, match="answered twice"):
        compare(model, plan, Twice(model, lambda same: same))


def test_the_random_plans_hold_what_they_are_meant_to_hold() -> None:
    """Otherwise the tests above would say less than they seem to."""
    model = tiny_model("llama")
    made = [seeded_plan(model, number) for number in range(150)]
    patches = [patch for plan in made for run in plan.derived for patch in run.patches]
    assert {patch.site for patch in patches} >= {*model.sites, "model.embed_tokens", "model.norm", "lm_head"}
    assert {patch.layer for patch in patches} == {None, 0, 1, 2}
    kinds = ("deep", "same layer", "earlier", "later", "same place", "identity", "bare", "unread")
    counts = dict.fromkeys(kinds, 0)
    for plan in made:
        by_id = {run.id: run for run in plan.derived}
        depth = dict.fromkeys((base.id for base in plan.bases), 0)
        for run in plan.derived:
            sources = [(p, p.source.run) for p in run.patches if hasattr(p.source, "run")]
            depth[run.id] = 1 + max((depth[source] for _, source in sources), default=0)
            counts["deep"] += depth[run.id] >= 3
            counts["bare"] += not run.patches
            places = [(p.site, p.layer) for p in run.patches]
            counts["same place"] += len(set(places)) < len(places)
            for patch, source in sources:
                counts["identity"] += source == run.base and patch.source.positions == patch.positions
                for other in by_id[source].patches if source in by_id else ():
                    if other.layer is not None and patch.layer is not None:
                        counts["same layer"] += other.layer == patch.layer
                        counts["earlier"] += other.layer > patch.layer
                        counts["later"] += other.layer < patch.layer
        counts["unread"] += len(depth) > len(plan.readouts)
    assert min(counts.values()) >= 10, counts
    lengths = {len(base.tokens) for plan in made for base in plan.bases}
    assert lengths >= {1, 3, 9}
    draws = [[base.noise.values for base in plan.bases if base.noise] for plan in made]
    assert sum(len(values) >= 2 and not torch.equal(values[0], values[1]) for values in draws) >= 10


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_many_more_plans(family: str) -> None:
    model = tiny_model(family)
    for number in range(400):
        memory_gb = (4.0, LITTLE_GB, 1e-3)[number % 3]
        plan = seeded_plan(model, 10_000 + number)
        columns = random_columns(Seeded(number), plan, model.anatomy.vocab) if number % 4 == 0 else None
        compare(model, plan, executor_of(model, memory_gb), columns=columns, skip_identities=number % 2 == 0)

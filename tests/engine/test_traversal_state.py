"""Whatever happens during a traversal, the model is afterwards what it was; and what must not be run is refused."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engramscope.engine.executor import make_executor
from engramscope.engine.plan import BaseRun, Constant, DerivedRun, FromRun, Noise, Patch, Plan, Readout
from engramscope.errors import ModelError
from engramscope.models import Model
from engramscope.models.interface import attention_configs
from tests.engine.comparing import compare
from tests.tiny_models import tiny_hf

FAMILIES = ("gpt2", "llama", "gptj", "bloom")
CLEAN, CORRUPTED = (13, 11, 25, 17, 42, 19, 60), (13, 11, 31, 17, 5, 19, 60)
LAST = len(CLEAN) - 1
TOKENS = torch.tensor([CLEAN, CORRUPTED])


class Planned(Exception):
    """Raised on purpose."""


def fresh_model(family: str) -> Model:
    """A model that no other test uses."""
    return Model.from_parts(tiny_hf(family), name=family)


def plan_of(model: Model) -> Plan:
    """Runs that pass every part of the model: patches of every site and of module paths, noise, several lengths."""
    noise = BaseRun("noisy", CLEAN, Noise((1, 3), torch.full((2, model.anatomy.d_model), 0.5)))
    bases = (BaseRun("clean", CLEAN), BaseRun("corrupted", CORRUPTED), noise, BaseRun("short", CLEAN[:4]))
    once = ("embed", "final_norm", "logits")
    derived = [
        DerivedRun(site, "corrupted", (Patch(site, None if site in once else 1, (4,), FromRun("clean", (4,))),))
        for site in model.sites
    ]
    path = next(path for path in model.module_paths if path.endswith(("1.mlp.c_fc", "1.mlp.up_proj", "1.mlp.fc_in"))
                or path.endswith("1.mlp.dense_h_to_4h"))  # fmt: skip
    derived.append(DerivedRun("path", "noisy", (Patch(path, None, (4,), FromRun("clean", (4,))),)))
    derived.append(DerivedRun("next", "clean", (Patch("z", 2, (5,), FromRun("path", (5,)), (1,)),)))
    runs = ["clean", "noisy", *(run.id for run in derived)]
    return Plan(bases, tuple(derived), (*(Readout(run, (LAST, 4)) for run in runs), Readout("short", (3,))))


def state_of(model: Model) -> dict[str, Any]:
    """Everything about the modules and configurations of a model that a traversal could leave changed."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs",
             "_forward_hooks_always_called", "_backward_hooks", "_backward_pre_hooks")  # fmt: skip
    found: dict[str, Any] = {}
    for name, module in model.hf.named_modules():
        entries = vars(module)
        held = ("_parameters", "_buffers", "_modules")
        found[name] = (
            {key: dict(entries[key]) for key in hooks},
            {f"{key}.{inner}": id(value) for key in held for inner, value in entries[key].items()},
            {key: id(value) for key, value in entries.items() if key not in (*hooks, *held)},
        )
    configs = attention_configs(model.hf)
    found["attention"] = [(config._attn_implementation, config._attn_implementation_internal) for config in configs]
    found["configurations"] = [{key: repr(value) for key, value in vars(config).items()} for config in configs]
    found["gradients"] = torch.is_grad_enabled()
    found["mode"] = [module.training for module in model.hf.modules()]
    return found


def logits_of(model: Model) -> Tensor:
    with torch.no_grad():
        return model.hf(input_ids=TOKENS, use_cache=False).logits


class Untouched:
    """Remembers a model, and tells whether it is still the same."""

    def __init__(self, model: Model) -> None:
        self.model, self.state, self.logits = model, state_of(model), logits_of(model)
        self.weights = {name: value.clone() for name, value in model.hf.state_dict().items()}

    def check(self, what: str) -> None:
        now = state_of(self.model)
        changed = [name for name in self.state if now.get(name) != self.state[name]]
        assert not changed, f"{what}: changed in {changed}"
        assert set(now) == set(self.state), what
        assert torch.equal(logits_of(self.model), self.logits), what
        for name, value in self.model.hf.state_dict().items():
            assert torch.equal(value, self.weights[name]), f"{what}: {name}"


def calls_of(module: nn.Module, run: Callable[[], object]) -> int:
    calls = 0

    def hook(*_: object) -> None:
        nonlocal calls
        calls += 1

    handle = module.register_forward_hook(hook)
    run()
    handle.remove()
    return calls


@pytest.mark.parametrize("family", FAMILIES)
def test_a_traversal_leaves_nothing_behind(family: str) -> None:
    model = fresh_model(family)
    untouched = Untouched(model)
    executor = make_executor(model)
    untouched.check("after the executor was made")
    for _ in range(2):
        compare(model, plan_of(model), executor)
        untouched.check("after a traversal")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["forward", "forward_pre"])
def test_an_exception_in_any_module_leaves_nothing_behind(family: str, kind: str) -> None:
    model = fresh_model(family)
    executor, plan = make_executor(model), plan_of(model)
    untouched = Untouched(model)
    raised = 0
    for name, module in model.hf.named_modules():
        calls = calls_of(module, lambda: list(executor.execute(plan)))
        for turn in sorted({min(1, calls), (calls + 1) // 2, calls} - {0}):
            left = turn

            def hook(*_: object) -> None:
                nonlocal left
                left -= 1
                if left == 0:
                    raise Planned

            handle = getattr(module, f"register_{kind}_hook")(hook)
            with pytest.raises(Planned):
                list(executor.execute(plan))
            handle.remove()
            untouched.check(f"{name}, call {turn} of {calls}")
            raised += 1
    assert raised > 60
    compare(model, plan, executor)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exception_in_the_attention_leaves_nothing_behind(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh_model(family)
    executor, plan = make_executor(model), plan_of(model)
    untouched = Untouched(model)
    original = torch.softmax

    def broken(*args: Any, **kwargs: Any) -> Tensor:
        raise Planned

    with monkeypatch.context() as patched:
        for owner, name in ((torch, "softmax"), (nn.functional, "softmax"), (Tensor, "softmax")):
            patched.setattr(owner, name, broken)
        with pytest.raises(Planned):
            list(executor.execute(plan))
    assert torch.softmax is original
    untouched.check("an exception in softmax")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_patch_that_cannot_be_done_leaves_nothing_behind(family: str) -> None:
    model = fresh_model(family)
    executor, good = make_executor(model), plan_of(model)
    untouched = Untouched(model)
    for patch in (
        Patch("mlp_out", 1, (2,), Constant(torch.zeros(1, 7))),
        Patch("z", 1, (2,), FromRun("clean", (99,))),
        Patch("z", 1, (2,), FromRun("clean", (2,)), (17,)),
        Patch("no_such_site", 1, (2,), FromRun("clean", (2,))),
        Patch("z", 7, (2,), FromRun("clean", (2,))),
    ):
        plan = Plan(good.bases, (DerivedRun("d", "corrupted", (patch,)),), (Readout("d", (LAST,)),))
        with pytest.raises(Exception):  # noqa: B017, PT011 - whatever it is, nothing may be left behind
            list(executor.execute(plan))
        untouched.check(str(patch))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("memory_gb", [4.0, 1e-4])
def test_an_abandoned_traversal_leaves_nothing_behind(family: str, memory_gb: float) -> None:
    model = fresh_model(family)
    executor, plan = make_executor(model, memory_gb=memory_gb), plan_of(model)
    untouched = Untouched(model)
    answers = executor.execute(plan)
    untouched.check("before the first answer")
    next(answers)
    assert torch.is_grad_enabled(), "who reads the answers has gradients"
    answers.close()
    untouched.check("closed")
    answers = executor.execute(plan)
    next(answers)
    del answers
    gc.collect()
    untouched.check("deleted")
    answers = executor.execute(plan)
    next(answers)
    with pytest.raises(Planned):
        answers.throw(Planned())
    untouched.check("thrown into")


class OutOfMemoryAbove:
    """A hook that runs out of memory whenever a call is about more than so many tokens."""

    def __init__(self, tokens: int) -> None:
        self.tokens, self.raised = tokens, 0

    def __call__(self, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args[0].numel() // args[0].shape[-1] > self.tokens:
            self.raised += 1
            raise torch.OutOfMemoryError("planned")


@pytest.mark.parametrize("family", FAMILIES)
def test_where_the_memory_runs_out_smaller_pieces_are_tried(family: str) -> None:
    model = fresh_model(family)
    executor, plan = make_executor(model), plan_of(model)
    untouched = Untouched(model)

    class Limited:
        """Only the executor under test is short of memory."""

        def execute(self, *args: Any, **kwargs: Any) -> Any:
            handle = model.blocks[1].mlp.register_forward_pre_hook(limit)
            try:
                yield from executor.execute(*args, **kwargs)
            finally:
                handle.remove()

    limit = OutOfMemoryAbove(16)
    compare(model, plan, Limited())
    assert limit.raised >= 1
    untouched.check("memory ran out")
    limit = OutOfMemoryAbove(0)
    with pytest.raises(torch.OutOfMemoryError, match="planned"):
        list(Limited().execute(plan))
    assert limit.raised > 1, "smaller pieces were tried"
    untouched.check("memory ran out for good")


@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_of_the_user_stay_and_still_work(family: str) -> None:
    model = fresh_model(family)
    seen: list[int] = []
    block = model.blocks[1]

    def double(_module: nn.Module, _args: Any, output: Any) -> Any:
        seen.append(1)
        return 2 * output if isinstance(output, Tensor) else (2 * output[0], *output[1:])

    block.register_forward_hook(double)
    model.hf.get_input_embeddings().register_forward_pre_hook(lambda *_: seen.append(2))
    untouched = Untouched(model)
    executor, plan = make_executor(model), plan_of(model)
    compare(model, plan, executor)
    assert {1, 2} <= set(seen)
    untouched.check("hooks of the user")
    seen.clear()
    logits_of(model)
    assert {1, 2} <= set(seen)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_was_in_training_mode_is_refused(family: str) -> None:
    model = fresh_model(family)
    executor, plan = make_executor(model), plan_of(model)
    model.hf.train()
    with pytest.raises(ModelError, match=r"training.*eval\(\)"):
        list(executor.execute(plan))
    with pytest.raises(ModelError, match=r"training.*eval\(\)"):
        list(make_executor(model).execute(plan))
    model.hf.eval()
    compare(model, plan, executor)


def test_a_single_dropout_in_training_mode_is_refused_by_name() -> None:
    model = fresh_model("gpt2")
    executor, plan = make_executor(model), plan_of(model)
    dropout = model.hf.transformer.h[1].attn.resid_dropout
    assert dropout.p > 0
    dropout.train()
    with pytest.raises(ModelError, match=r"eval\(\)") as refusal:
        list(executor.execute(plan))
    assert "transformer.h.1.attn.resid_dropout" in str(refusal.value)
    dropout.eval()
    compare(model, plan, executor)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_names_the_layer_and_the_run(family: str, value: float) -> None:
    model = fresh_model(family)
    executor, plan = make_executor(model), plan_of(model)
    weights = {"gpt2": "c_proj", "llama": "down_proj", "gptj": "fc_out", "bloom": "dense_4h_to_h"}
    with torch.no_grad():
        getattr(model.blocks[2].mlp, weights[family]).weight[0, 0] = value
    troubled: dict[str, str] = {}
    answered: set[str] = set()
    for answer in executor.execute(plan):
        assert set(answer.trouble) <= set(answer.runs)
        troubled.update(answer.trouble)
        answered.update(answer.runs)
    assert answered == {readout.run for readout in plan.readouts}
    assert set(troubled) >= {"clean", "noisy", "path"}
    for run, sentence in troubled.items():
        assert "layer 2" in sentence, sentence
        assert run in sentence, sentence


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_run_that_is_not_finite_is_in_trouble(family: str) -> None:
    model = fresh_model(family)
    width = model.anatomy.d_model
    bad = Patch("mlp_out", 1, (4,), Constant(torch.full((1, width), math.nan)))
    good = Patch("mlp_out", 1, (4,), FromRun("corrupted", (4,)))
    bases = (BaseRun("clean", CLEAN), BaseRun("corrupted", CORRUPTED))
    derived = (
        DerivedRun("bad", "clean", (bad,)),
        DerivedRun("good", "clean", (good,)),
        DerivedRun("reader", "clean", (Patch("resid_post", 1, (5,), FromRun("bad", (4,))),)),
    )
    plan = Plan(bases, derived, tuple(Readout(run, (LAST,)) for run in ("clean", "bad", "good", "reader")))
    trouble: dict[str, str] = {}
    logits: dict[str, Tensor] = {}
    for answer in make_executor(model).execute(plan):
        trouble.update(answer.trouble)
        logits.update(zip(answer.runs, answer.logits, strict=True))
    assert set(trouble) == {"bad", "reader"}
    assert "layer 1" in trouble["bad"]
    assert {run for run, row in logits.items() if not bool(row.isfinite().all())} == {"bad", "reader"}

"""Weights that stay on disk or in main memory: the same numbers, and each layer comes in once for many runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import hooks
from torch.testing import assert_close

from engramscope.engine.executor import make_executor
from engramscope.engine.plan import BaseRun, DerivedRun, FromRun, Patch, Plan, Readout
from engramscope.errors import ModelError
from engramscope.models import Model, load_model
from engramscope.models.offload import held, is_offloaded
from tests.tiny_models import tiny_hf
from tests.tiny_study import tokenizer

CLEAN, CORRUPTED = (3, 11, 25, 7, 12, 9), (3, 11, 8, 7, 5, 9)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = tokenizer()
    path = tmp_path_factory.mktemp(request.param)
    tiny_hf(request.param, vocab_size=len(words)).save_pretrained(path)
    words.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def offloaded(folder: Path) -> Model:
    # so little memory that nearly everything stays on disk
    return load_model(str(folder), device="offload", resident_gb=1e-6)


def plan(n_layers: int) -> Plan:
    bases = (BaseRun("clean", CLEAN), BaseRun("corrupted", CORRUPTED))
    derived = tuple(
        DerivedRun(f"{site}{layer}{at}", "corrupted", (Patch(site, layer, (at,), FromRun("clean", (at,))),))
        for site in ("resid_post", "z", "mlp_out")
        for layer in range(n_layers)
        for at in (2, 4)
    )
    return Plan(bases, derived, tuple(Readout(run.id, (5,)) for run in (*bases, *derived)))


def logits(model: Model, **options: Any) -> dict[str, torch.Tensor]:
    executor = make_executor(model, **options)
    answers = executor.execute(plan(model.anatomy.n_layers))
    return {run: row for answered in answers for run, row in zip(answered.runs, answered.logits, strict=True)}


def test_the_numbers_are_those_of_the_model_in_memory(folder: Path, offloaded: Model) -> None:
    assert is_offloaded(offloaded.hf)
    assert make_executor(offloaded).way == "packed"
    wanted, found = logits(load_model(str(folder)), kind="reference"), logits(offloaded)
    assert set(found) == set(wanted)
    for run, row in wanted.items():
        assert_close(found[run], row, rtol=0, atol=1e-4)
    assert_close(logits(offloaded, kind="reference")["clean"], wanted["clean"], rtol=0, atol=1e-4)


def test_each_layer_comes_in_once(offloaded: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = make_executor(offloaded)
    list(executor.execute(plan(offloaded.anatomy.n_layers)))
    came: Counter[str] = Counter()
    names = {module: path for path, module in offloaded.hf.named_modules()}
    really = hooks.AlignDevicesHook.pre_forward

    def counted(self: Any, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self.offload and any(True for _ in module.parameters(recurse=False)):
            came[names[module]] += 1
        return really(self, module, *args, **kwargs)

    monkeypatch.setattr(hooks.AlignDevicesHook, "pre_forward", counted)
    list(executor.execute(plan(offloaded.anatomy.n_layers)))
    inside = {path: count for path, count in came.items() if path.startswith(offloaded.anatomy.blocks)}
    assert len(inside) >= 3 * offloaded.anatomy.n_layers
    assert set(inside.values()) == {1}


def test_what_was_held_goes_out_again_whatever_happens(offloaded: Model) -> None:
    block = offloaded.first_block
    before = {path: dict(module.__dict__) for path, module in block.named_modules()}
    seen: list[str] = []

    def fails_while_held() -> None:
        with held(block):
            seen.extend(weight.device.type for weight in block.parameters())
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fails_while_held()
    assert set(seen) == {"cpu"}
    assert all(weight.device.type == "meta" for weight in block.parameters())
    for path, module in block.named_modules():
        assert module.__dict__.get("forward") is before[path].get("forward")


def test_the_hash_is_that_of_the_model_in_memory(folder: Path, offloaded: Model) -> None:
    assert offloaded.weight_hash() == load_model(str(folder), check=False).weight_hash()


def test_a_device_that_is_none_names_offload(folder: Path) -> None:
    with pytest.raises(ModelError, match="offload"):
        load_model(str(folder), device="nowhere")

"""A model of which one module was really trained: upstream of it nothing counts, and the module is everything.

What the sweeps say is compared with plain copies and plain hooks, to the last bit.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from engramscope import load_model, patch
from engramscope.finetune import resolve_settings, run, run_finetune
from engramscope.models import Model
from engramscope.pairs import Pair, PairSet
from tests.finetune.small import corpus_table, in_this_process
from tests.tiny_study import pair_rows, save_model

MODULES = {"gpt2": "transformer.h.1.mlp", "llama": "model.layers.1.self_attn"}
SETTINGS = ["epochs=1", "warmup_steps=0", "train_batch=4", "accumulation=2", "learning_rate=1e-2"]


@pytest.fixture(scope="module", params=sorted(MODULES))
def organism(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Model, str]:
    """The trained model, the one before training, and the path of what was trained."""
    folder, module = tmp_path_factory.mktemp("organism"), MODULES[request.param]
    base = save_model(folder / "base", request.param)
    with pytest.MonkeyPatch.context() as change:
        change.setattr(run, "run_worker", in_this_process)
        settings = resolve_settings("", SETTINGS, only=[module], device="cpu")
        tuned = run_finetune(settings, corpus_table(40), str(base), folder / "tuned")
    return load_model(str(tuned.folder), device="cpu"), load_model(str(base), device="cpu"), module


def _pairs() -> PairSet:
    return PairSet(
        tuple(
            Pair(id=row["id"], clean=row["clean"], correct=tuple(row["correct"]), incorrect=tuple(row["incorrect"]),
                 group=row["group"])
            for row in pair_rows(4)
        )
    )  # fmt: skip


def _logits(hf: Any, model: Model, pair: Pair) -> torch.Tensor:
    ids = torch.tensor([model.tokenizer(pair.clean)["input_ids"]])
    with torch.no_grad():
        return hf(input_ids=ids, use_cache=False).logits[0, -1]


def _difference(logits: torch.Tensor, model: Model, pair: Pair) -> float:
    right, wrong = (
        model.tokenizer(answer, add_special_tokens=False)["input_ids"][0]
        for answer in (pair.correct[0], pair.incorrect[0])
    )
    return float(logits[right] - logits[wrong])


def test_only_the_module_moved(organism: tuple[Model, Model, str]) -> None:
    tuned, base, module = organism
    before, after = base.hf.state_dict(), tuned.hf.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith(f"{module}.") for name in moved)


def test_by_plain_copies_the_module_is_everything(organism: tuple[Model, Model, str]) -> None:
    tuned, base, module = organism
    mixed = copy.deepcopy(base.hf)
    mixed.get_submodule(module).load_state_dict(tuned.hf.get_submodule(module).state_dict())
    for pair in _pairs():
        assert torch.equal(_logits(mixed, base, pair), _logits(tuned.hf, tuned, pair))
        assert not torch.equal(_logits(base.hf, base, pair), _logits(tuned.hf, tuned, pair))


def test_by_plain_hooks_upstream_is_nothing(organism: tuple[Model, Model, str]) -> None:
    tuned, base, module = organism
    path = f"{module.rsplit('.', 2)[0]}.0"  # the block before
    for pair in _pairs():
        kept: list[Any] = []
        handle = tuned.hf.get_submodule(path).register_forward_hook(lambda *given, kept=kept: kept.append(given[2]))
        _logits(tuned.hf, tuned, pair)
        handle.remove()
        handle = base.hf.get_submodule(path).register_forward_hook(lambda *_, kept=kept: kept[0])
        patched = _logits(base.hf, base, pair)
        handle.remove()
        assert torch.equal(patched, _logits(base.hf, base, pair))


@pytest.mark.parametrize("executor", ["traversal", "reference"])
def test_the_sweeps_say_the_same(organism: tuple[Model, Model, str], executor: str) -> None:
    tuned, base, module = organism
    part = "mlp" if module.endswith("mlp") else "attn"
    pairs = _pairs()
    gaps = {
        pair.id: _difference(_logits(tuned.hf, tuned, pair), tuned, pair)
        - _difference(_logits(base.hf, base, pair), base, pair)
        for pair in pairs
    }
    for site in (f"weights:{part}", "weights:block", f"{part}_out", "resid_post"):
        found = patch(tuned, pairs, site, corruption="base_model", base=base, executor=executor, resamples=100)
        assert set(found.effects["layer"]) == {0, 1, 2}
        for row in found.effects.itertuples():
            if row.layer == 1 or (site == "resid_post" and row.layer == 2):
                assert row.effect == pytest.approx(gaps[row.pair], rel=1e-5), (site, row.layer)
                assert row.recovery == 1.0
            elif row.layer == 0 or site.startswith("weights:"):
                assert row.effect == 0.0, (site, row.layer)
            else:  # parts that read what the module wrote
                assert row.effect != 0.0, (site, row.layer)

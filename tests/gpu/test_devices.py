"""The same numbers on a GPU as on the processor, bits given back, nothing left on a module.

Run by hand: `pytest -m gpu`. ENGRAMSCOPE_TEST_DEVICE=cpu runs the module itself without a GPU.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from engramscope.edit.catalogue import make_editor
from engramscope.edit.moment_store import MomentStore
from engramscope.edit.moments import second_moments
from engramscope.edit.storage import load_edit, save_edit
from engramscope.edit.texts import given_texts
from engramscope.evaluate.evaluate import EvaluateOptions, evaluate_record
from engramscope.models.model import Model
from engramscope.models.weights import weight_tensors
from engramscope.study import run_study
from tests.edit import trained
from tests.edit.small import FACT, tiny_with_tokenizer
from tests.edit.test_rome import TEXTS
from tests.editing.tiny import tiny_records
from tests.tiny_study import save_model, write_study

DEVICE = os.environ.get("ENGRAMSCOPE_TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA device"),
]
FAMILIES = ("gpt2", "llama", "gpt_neox", "qwen3")
SWEEPS = (
    {"name": "resid", "site": "resid_pre", "positions": "each"}, {"name": "heads", "site": "z", "heads": "each"},
    {"name": "mlp", "site": "mlp_out"}, {"name": "attn", "site": "attn_out"},
)  # fmt: skip


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Editors with options that are quick on a tiny model."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "texts.txt").write_text("\n\n".join(TEXTS))
    given = {"texts": folder / "texts.txt", "cache": folder / "cache", "tokens": 200, "eps": 1e-2, "steps": 3}
    one = given | {"layer": 1, "prefixes": ()}
    many = given | {"layers": (0, 1), "prefixes": ()}
    return {
        "ft": {"layer": 1, "steps": 3}, "ft_l": {"layer": 1, "steps": 3}, "kn": {"steps": 4}, "rome": one,
        "random_site": one, "memit": many | {"weight": 10.0}, "alphaedit": many | {"null_share": 0.3},
    }  # fmt: skip


def on_both(family: str) -> tuple[Model, Model]:
    """The same weights on the processor and on the device."""
    plain = tiny_with_tokenizer(family)
    moved = copy.deepcopy(plain.hf).to(DEVICE)
    return plain, Model.from_parts(moved, plain.tokenizer, name=plain.name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("corruption", ["str", "gaussian"])
def test_a_study_finds_the_same_cells(family: str, corruption: str, tmp_path: Path) -> None:
    save_model(tmp_path / "model", family)
    found = []
    for device in ("cpu", DEVICE):
        path = write_study(
            tmp_path / device.replace(":", "-"), tmp_path / "model", SWEEPS, model={"device": device},
            **({"corruption": {"method": "gaussian"}} if corruption == "gaussian" else {}),
        )  # fmt: skip
        run_study(path, tmp_path / f"out-{len(found)}")
        found.append(pd.read_parquet(tmp_path / f"out-{len(found)}" / "effects.parquet"))
    ours, other = found
    numbers = ours.select_dtypes("number").columns
    assert len(ours)
    pd.testing.assert_frame_equal(ours.drop(columns=numbers), other.drop(columns=numbers))
    pd.testing.assert_frame_equal(ours[numbers], other[numbers], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["ft", "ft_l", "kn", "rome", "random_site", "memit", "alphaedit"])
def test_an_edit_is_the_same(method: str, family: str, options: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    plain, moved = on_both(family)
    before = {name: value.clone() for name, value in weight_tensors(moved.hf).items()}
    wanted = make_editor(method, options[method]).compute(plain, FACT, seed=2)
    found = make_editor(method, options[method]).compute(moved, FACT, seed=2)
    assert found.deltas.keys() == wanted.deltas.keys()
    for name, delta in wanted.deltas.items():
        whole = delta.dense().cpu()
        least = 1e-3 * float(whole.abs().max())
        torch.testing.assert_close(found.deltas[name].dense().cpu(), whole, rtol=1e-2, atol=least)
    save_edit(found, tmp_path / "edit.safetensors")
    again = load_edit(tmp_path / "edit.safetensors")
    ids = torch.arange(7)[None]
    with found.applied(moved):
        here = moved.logits(ids).cpu()
    with again.applied(moved):
        torch.testing.assert_close(moved.logits(ids).cpu(), here, rtol=0, atol=0)
    # an edit of the one is an edit of the other
    with found.applied(plain):
        torch.testing.assert_close(plain.logits(ids), here, rtol=1e-3, atol=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in weight_tensors(moved.hf).items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in moved.hf.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["ft", "rome", "memit", "kn"])
def test_in_half_precision_an_edit_is_felt_and_taken_out(
    method: str, dtype: torch.dtype, options: dict[str, dict[str, Any]]
) -> None:
    plain, _ = on_both("gpt2")
    model = Model.from_parts(plain.hf.to(DEVICE, dtype), plain.tokenizer, name="half", check=False)
    ids = torch.arange(7)[None]
    before = model.logits(ids)
    edit = make_editor(method, options[method]).compute(model, FACT)
    assert all(delta.dense().dtype == torch.float32 for delta in edit.deltas.values())
    with edit.applied(model):
        assert not torch.equal(model.logits(ids), before)
    assert torch.equal(model.logits(ids), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_second_moments_are_the_same(family: str, tmp_path: Path) -> None:
    found = [
        second_moments(model, [0, 2], given_texts(TEXTS), MomentStore.at(tmp_path / str(number)), tokens=150)
        for number, model in enumerate(on_both(family))
    ]
    for layer in (0, 2):
        torch.testing.assert_close(found[1][layer].matrix, found[0][layer].matrix, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_measures_are_the_same(family: str) -> None:
    record = tiny_records(1)[0]
    plain, moved = on_both(family)
    rows = [evaluate_record(model, record, options=EvaluateOptions(length=20, seed=3)).rows for model in (plain, moved)]
    assert len(rows[0]) == len(rows[1]) > 0
    # texts are drawn from probabilities that differ by rounding, so what depends on them may differ
    for one, other in zip(*rows, strict=True):
        assert (one.measure, one.prompt) == (other.measure, other.prompt)
        if one.measure not in ("GE", "RS"):
            assert one.value == pytest.approx(other.value, rel=1e-3, abs=1e-4, nan_ok=True), one.measure


@pytest.mark.parametrize("editor", ["mend", "ke"])
def test_an_editor_is_trained_and_edits(editor: str, tmp_path: Path) -> None:
    _, moved = on_both("gpt2")
    edit = trained.editor_of(editor, trained.quick_training(editor, moved, tmp_path / "e").folder).compute(moved, FACT)
    ids = torch.arange(7)[None]
    before = moved.logits(ids)
    with edit.applied(moved):
        assert not torch.equal(moved.logits(ids), before)
    assert torch.equal(moved.logits(ids), before)

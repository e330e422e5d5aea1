"""Low-rank adapters: a stop within an epoch leaves no trace, neither in them nor in what they are folded into."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from engramscope.finetune.layout import Layout, complete_checkpoints
from tests.finetune.small import go_on, prepared, same_runs, stop_at

pytestmark = [
    pytest.mark.usefixtures("one_process"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft's own
]
ADAPTER, WHOLE = "adapter_model.safetensors", "model.safetensors"
SETS = [
    "epochs=2",
    "lora.targets=c_attn,c_proj",
    "lora.rank=3",
    "lora.alpha=12",
    "lora.dropout=0.1",
    "learning_rate=1e-2",
]


def _adapters(result: Any, per_epoch: int) -> dict[str, torch.Tensor]:
    """Those of the best epoch."""
    step = result.manifest()["best_epoch"] * per_epoch
    return load_file(Layout(result.folder).checkpoints / f"checkpoint-{step}" / ADAPTER)


@pytest.mark.parametrize("merge", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_stop_within_an_epoch_changes_neither_adapters_nor_weights(
    dropping: str, tmp_path: Path, merge: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"lora": {}, "merge": merge}
    whole = go_on(dropping, tmp_path / "whole", *SETS, **given)
    layout = prepared(dropping, tmp_path / "run", *SETS, **given)
    per_epoch = json.loads(layout.manifest.read_text())["steps"]["per_epoch"]
    assert per_epoch > 3
    stop_at(layout, per_epoch + 2, lambda: go_on(dropping, layout.root, *SETS, **given), monkeypatch)
    step, checkpoint = complete_checkpoints(layout.checkpoints)[-1]
    assert step == per_epoch + 2
    assert not (checkpoint / WHOLE).exists()
    again = go_on(dropping, layout.root, *SETS, **given)
    assert again.manifest()["resumed"][-1]["step"] == step
    same_runs(again, whole, WHOLE if merge else ADAPTER)
    assert (again.folder / WHOLE).exists() is merge
    assert (again.folder / ADAPTER).exists() is not merge

    found, wanted = _adapters(again, per_epoch), _adapters(whole, per_epoch)
    assert found.keys() == wanted.keys()
    assert sum("lora_B" in name for name in found) == 9  # c_attn and two c_proj in each of three layers
    assert all(value.abs().max() > 0 for name, value in found.items() if "lora_B" in name)
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], rtol=0, atol=1e-6, msg=name)
    if not merge:
        assert all(torch.equal(value, found[name]) for name, value in load_file(again.folder / ADAPTER).items())
        return
    # by hand: W + alpha / rank × (B A)ᵀ, since GPT-2 keeps its matrices transposed; all else as it was
    after = load_file(again.folder / WHOLE)
    for name, before in load_file(Path(dropping) / WHOLE).items():
        part = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if f"{part}A.weight" in found:
            before = before + 12 / 3 * (found[f"{part}B.weight"] @ found[f"{part}A.weight"]).T
        torch.testing.assert_close(after[name], before, rtol=0, atol=1e-6, msg=name)

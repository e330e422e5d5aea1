"""Fine-tuning in FP16, which needs a GPU; what of it can be had without one stands in tests/finetune.

Run by hand: `pytest -m gpu`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from engramscope.finetune import run
from engramscope.finetune.layout import complete_checkpoints, read_chunks
from tests.finetune.small import go_on, in_this_process, naive_loss, prepared, same_runs, stop_at
from tests.tiny_study import save_model

pytestmark = [
    pytest.mark.gpu,
    # with several the Trainer of a single process would copy the model to each of them
    pytest.mark.skipif(torch.cuda.device_count() != 1, reason="needs one CUDA device"),
]
SETS = ["epochs=2", "deterministic=true"]


@pytest.fixture
def _deterministic_only_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A training refuses what is not deterministic for the whole of its process, which here goes on."""
    monkeypatch.setattr(run, "run_worker", in_this_process)
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


@pytest.mark.usefixtures("_deterministic_only_here")
def test_fp16_is_used_validated_in_full_precision_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
    model = str(save_model(tmp_path / "model", "gpt2", **over))
    whole = go_on(model, tmp_path / "whole", *SETS, preset="clap-1")
    layout = prepared(model, tmp_path / "run", *SETS, preset="clap-1")
    step = json.loads(layout.manifest.read_text())["steps"]["per_epoch"] + 2
    stop_at(layout, step, lambda: go_on(model, layout.root, *SETS, preset="clap-1"), monkeypatch)
    number, checkpoint = complete_checkpoints(layout.checkpoints)[-1]
    assert number == step
    assert (checkpoint / "scaler.pt").exists()
    validation = read_chunks(layout.chunks)[1]
    again = go_on(model, layout.root, *SETS, preset="clap-1")
    same_runs(again, whole)
    manifest = whole.manifest()
    assert (manifest["device"], manifest["precision"]) == ("cuda", {"asked": "fp16", "used": "fp16"})
    assert manifest["peak_gpu_bytes"] > 0
    for when, folder in (("before", model), ("after", whole.folder)):
        assert manifest["validation_loss"][when] == pytest.approx(naive_loss(folder, validation)[0], rel=1e-4)

"""The recipe for several machines: prepare, train by hand, write down; it leaves what one command leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engramscope.finetune import keeper, resolve_settings, run, run_finetune
from engramscope.finetune import tuner as tuning
from engramscope.finetune._worker import DONE
from engramscope.finetune._worker import run as run_worker_here
from engramscope.finetune.layout import Layout
from tests.finetune.small import FAST, corpus_table, in_this_process

#: two tied names of one matrix, so that the training process has something to say
ONLY = ["transformer.h", "lm_head"]


def _clocks(patch: pytest.MonkeyPatch) -> None:
    """Clocks on which every look takes a second, so that the same training takes the same time."""
    for module, name in ((keeper, "monotonic"), (tuning, "perf_counter")):
        patch.setattr(module, "time", SimpleNamespace(**{name: count(0.0).__next__}))


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _refuse(*_: object, **__: object) -> None:
    raise AssertionError("a machine that prepares and writes down neither trains nor needs the GPUs")


def test_three_commands_by_hand_leave_what_one_leaves(
    dropping: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = resolve_settings("clap-1", [*FAST, "keep_checkpoints=false"], device="cpu", only=ONLY)

    def command(folder: Path, worker: Callable[..., None], **how: Any) -> list[str]:
        said: list[str] = []
        with monkeypatch.context() as patch:
            _clocks(patch)
            patch.setattr(run, "run_worker", worker)
            if worker is _refuse:
                patch.setattr(run, "ensure_gpus", _refuse)
            run_finetune(settings, corpus_table(60), dropping, folder, say=said.append, **how)
        return said

    command(tmp_path / "one", in_this_process)
    layout = Layout(tmp_path / "by hand")
    told = command(layout.root, _refuse, prepare_only=True)
    assert f"torchrun --nproc-per-node 1 -m engramscope.finetune._worker {layout.root}" in told[-1]
    with monkeypatch.context() as patch:
        _clocks(patch)
        assert run_worker_here(layout.root) == DONE
    assert not (layout.root / "history.csv").exists()
    told = command(layout.root, _refuse, resume=True)
    assert not any(text.startswith("Going on from") for text in told), "nothing was left to go on with"

    one, other = _files(tmp_path / "one"), _files(layout.root)
    assert {"history.csv", "steps.csv", "figures/loss.svg", "figures/gradient_norm.svg", "report.html", "split.parquet",
            "model.safetensors", "training.json"} <= one.keys() == other.keys()  # fmt: skip
    manifests = [json.loads(files.pop("training.json")) for files in (one, other)]
    for manifest in manifests:
        assert manifest["finished"] >= manifest["started"]
        del manifest["finished"], manifest["started"]
    assert manifests[1] == manifests[0]
    assert any("lm_head.weight shares its weights" in note for note in manifests[0]["notes"])
    assert manifests[0]["seconds"]["training"] > 0
    assert [name for name in one if other[name] != one[name]] == []

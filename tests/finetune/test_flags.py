"""The flags of `engramscope finetune`: what of each of them stands in the folder, and an adapter that is used."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from engramscope.cli import _run_app
from engramscope.finetune import resolve_settings, run
from engramscope.finetune.layout import Job, Layout, read_chunks
from tests.finetune.small import FAST, corpus_folder, corpus_table, naive_loss

LORA = {"rank": 8, "alpha": 16.0, "dropout": 0.0, "targets": []}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus_folder(tmp_path_factory.mktemp("corpus") / "c", corpus_table(60))


def _arguments(corpus: Path, model: Path, out: Path, *flags: str) -> list[str]:
    sets = [part for one in FAST for part in ("--set", one)]
    return ["finetune", "--corpus", str(corpus), "--model", str(model), "--out", str(out), *sets, *flags]


def _refuse(*_: object) -> None:
    raise AssertionError("something was trained")


@pytest.mark.parametrize(
    ("flags", "changed"),
    [
        ([], {}),
        (["--lora"], {"lora": LORA}),
        (["--no-merge"], {"merge": False}),
        (["--lora", "--no-merge", "--set", "lora.rank=2"], {"lora": LORA | {"rank": 2}, "merge": False}),
        (["--only", "transformer.h.0.mlp"], {"only": ["transformer.h.0.mlp"]}),
        (["--only", "transformer.h.0.mlp", "--only", "transformer.wte"],
         {"only": ["transformer.h.0.mlp", "transformer.wte"]}),
        (["--random-weights"], {"random_weights": True}),
        (["--processes", "2"], {"processes": 2}),
        (["--terms", "EEG, absence ,", "--limit", "40"], {"terms": ["EEG", "absence"], "limit": 40}),
        (["--device", "cpu", "--preset", "clap-2"],
         {"device": "cpu", "preset": "clap-2", "weight_decay": 0.1, "patience": 5, "precision": "fp32"}),
    ],
)  # fmt: skip
def test_a_flag_changes_its_setting_and_no_other(
    corpus: Path, gpt2: Path, tmp_path: Path, flags: list[str], changed: dict[str, Any],
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(run, "run_worker", _refuse)
    out = tmp_path / "o"
    assert _run_app(_arguments(corpus, gpt2, out, "--prepare", *flags)) == 0
    manifest = json.loads((out / "training.json").read_text(encoding="utf-8"))
    assert manifest["status"] == "prepared"
    assert manifest["settings"] == resolve_settings("clap-1", FAST).model_dump(mode="json") | changed
    assert Job.read(Layout(out).job).settings.model_dump(mode="json") == manifest["settings"]
    assert not (out / "model.safetensors").exists()
    # a batch is per process, so two of them need half the steps
    processes = changed.get("processes", 1)
    assert manifest["steps"]["per_epoch"] == math.ceil(manifest["split"]["train"]["chunks"] / (4 * 2 * processes))
    assert f"torchrun --nproc-per-node {processes} -m engramscope.finetune._worker {out}" in capsys.readouterr().out


@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own
def test_an_adapter_that_was_not_merged_loads_with_peft(
    corpus: Path, gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import PeftModel

    out = tmp_path / "o"
    arguments = _arguments(corpus, gpt2, out, "--device", "cpu", "--lora", "--no-merge", "--set", "learning_rate=1e-2")
    assert _run_app([*arguments, "--prepare"]) == 0
    validation = read_chunks(Layout(out).chunks)[1]
    assert _run_app([*arguments, "--resume"]) == 0
    names = {path.name for path in out.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "report.html"} <= names
    assert not {"model.safetensors", "config.json"} & names
    manifest = json.loads((out / "training.json").read_text(encoding="utf-8"))
    assert manifest["model"]["trained"] < manifest["model"]["parameters"]
    base, _ = naive_loss(gpt2, validation)
    adapted, _ = naive_loss(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(gpt2), str(out)), validation)
    assert adapted < base - 0.01
    assert manifest["validation_loss"]["before"] == pytest.approx(base, rel=1e-5)
    assert manifest["validation_loss"]["after"] == pytest.approx(adapted, rel=1e-5)
    assert "left beside the base as an adapter" in capsys.readouterr().out

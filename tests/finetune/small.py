"""Corpora and models that train in a second, for tests of fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from engramscope.corpus.table import COLUMNS, TABLE
from engramscope.finetune import resolve_settings, run_finetune
from engramscope.finetune._worker import Events
from engramscope.finetune.keeper import Keeper
from engramscope.finetune.layout import Job, Layout
from engramscope.finetune.training import Listener, train
from tests.tiny_study import ANSWERS, NAMES, SENTENCES

FAST = ["epochs=3", "warmup_steps=2", "train_batch=4", "accumulation=2", "learning_rate=1e-3", "save_minutes=0",
        "keep_checkpoints=true"]  # fmt: skip
#: columns that a clock does not write
COUNTED = ["epoch", "step", "train_loss", "validation_loss", "gradient_norm_mean", "gradient_norm_max", "learning_rate",
           "tokens", "skipped_steps"]  # fmt: skip


def corpus_table(count: int, seed: int = 0) -> pd.DataFrame:
    """Abstracts of a few to a few dozen tokens, half of which mention epilepsy and a third EEG."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        sentences = [
            SENTENCES[random.integers(3)].format(NAMES[random.integers(10)]) + ANSWERS[random.integers(5)]
            for _ in range(random.integers(1, 6))
        ]
        terms = (" epilepsy" if number % 2 else "") + (" EEG" if number % 3 == 0 else "")
        text = ". ".join(sentences) + f" {number}{terms}"
        rows.append({name: "" for name in COLUMNS} | {
            "PMID": str(1000 + number), "Title": f"Title {number}", "Abstract": text, "Year": 2000,
        })  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"Year": "Int64"})


def corpus_folder(folder: Path, table: pd.DataFrame) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / TABLE)
    return folder


def in_this_process(layout: Layout, job: Job, hear: Any) -> None:
    """Stands in for the process that trains, where it does not matter that it is one of its own."""
    del job
    events = Events(layout.events)
    done = train(
        layout, Listener(events.tell, lambda row: hear({"event": "epoch", "row": row}),
                         lambda text: hear({"event": "say", "text": text})),
    )  # fmt: skip
    if not done:
        raise KeyboardInterrupt


def prepared(model: str, folder: Path, *sets: str, preset: str = "", count: int = 60, **given: Any) -> Layout:
    settings = resolve_settings(preset, [*FAST, *sets], **given)
    run_finetune(settings, corpus_table(count), model, folder, prepare_only=True)
    return Layout(folder)


def go_on(model: str, folder: Path, *sets: str, preset: str = "", count: int = 60, **given: Any) -> Any:
    settings = resolve_settings(preset, [*FAST, *sets], **given)
    return run_finetune(settings, corpus_table(count), model, folder, resume=folder.exists())


def naive_loss(model: Any, chunks: list[np.ndarray]) -> tuple[float, float]:
    """Mean over tokens, one chunk at a time and one token at a time; and the mean of batch means of two."""
    hf = AutoModelForCausalLM.from_pretrained(model) if isinstance(model, str | Path) else model
    hf.eval()
    each: list[list[float]] = []
    for chunk in chunks:
        with torch.no_grad():
            probabilities = hf(torch.tensor([chunk.tolist()])).logits[0].double().log_softmax(-1)
        each.append([-probabilities[at, token].item() for at, token in enumerate(chunk[1:].tolist())])
    flat = [value for row in each for value in row]
    pairs = [each[at] + (each[at + 1] if at + 1 < len(each) else []) for at in range(0, len(each), 2)]
    return float(np.mean(flat)), float(np.mean([np.mean(row) for row in pairs]))


def same_runs(found: Any, undisturbed: Any, weights: str = "model.safetensors") -> None:
    one, two = (load_file(run.folder / weights) for run in (found, undisturbed))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=0, atol=1e-6, msg=name)
    left, right = (run.history()[COUNTED].to_numpy(dtype=float) for run in (found, undisturbed))
    np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-9)


def stop_at(layout: Layout, step: int, go: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until a step, and ask for an end there."""
    plain = Keeper.on_step_end

    def stop_there(self: Keeper, args: Any, state: Any, control: Any, **other: Any) -> None:
        if state.global_step == step:
            layout.stop.touch()
        plain(self, args, state, control, **other)

    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "on_step_end", stop_there)
        with pytest.raises(KeyboardInterrupt):
            go()

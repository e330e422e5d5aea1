"""Fine-tune a model on a corpus: prepare, train in a process of its own, and write down what it did."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from engramscope.errors import ResultsError
from engramscope.finetune.history import best_row, epochs_since_best, history_table, overfitting_epoch, trained_rows
from engramscope.finetune.layout import Layout, complete_checkpoints, write_chunks
from engramscope.finetune.page import write_page
from engramscope.finetune.prepare import Prepared, ensure_gpus, parameters_of, prepare, room_note
from engramscope.finetune.settings import Settings
from engramscope.finetune.steps import FILE as STEPS
from engramscope.finetune.steps import steps_of, steps_table
from engramscope.finetune.supervise import run_worker
from engramscope.finetune.words import epoch_line, sentences
from engramscope.provenance import machine, versions
from engramscope.results.atomic import remove_temporary_files, write_json, write_table, write_text
from engramscope.results.folders import is_empty, refuse_occupied
from engramscope.results.lock import FolderLock

#: called with (what, done, total)
Progress = Callable[[str, int, int], None]
SCHEMA = 1


@dataclass(frozen=True)
class FinetuneResult:
    """A fine-tuning on disk.

    Attributes:
        folder: loads with `load_model` and with `AutoModelForCausalLM.from_pretrained`.
    """

    folder: Path

    def history(self) -> pd.DataFrame:
        """One row per epoch; epoch 0 is the model before training. Losses in nats per predicted token."""
        return pd.read_csv(self.folder / "history.csv")

    def steps(self) -> pd.DataFrame:
        """One row per optimiser step: its place on the axis of epochs, training loss, gradient norm, learning rate."""
        return steps_of(self.folder)

    def manifest(self) -> dict[str, Any]:
        """What stands in `training.json`."""
        return json.loads((self.folder / "training.json").read_text(encoding="utf-8"))

    def sentences(self) -> list[str]:
        """What training did, in words."""
        return sentences(self.manifest())

    @property
    def page(self) -> Path:
        """The page."""
        return self.folder / "report.html"


def run_finetune(
    settings: Settings,
    corpus: Path | str | pd.DataFrame,
    model: str,
    out: Path | str,
    *,
    resume: bool = False,
    prepare_only: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> FinetuneResult:
    """Fine-tune a causal language model on the abstracts of a corpus.

    Args:
        settings: see `resolve_settings`.
        corpus: a corpus folder, its table, or the table in memory.
        model: a bundled name, a folder, or a hub id.
        out: a new folder.
        resume: go on from the last checkpoint of an earlier run of the same settings, corpus and model.
        prepare_only: stop before training, for a `torchrun` by hand.
        progress: called with (what, done, total).
        say: called with sentences worth knowing while it runs: what differs from what was asked, and every epoch.

    Raises:
        InputError: everything that is wrong with settings, corpus, model or folder.
        TrainingError: the training process died; `resume` goes on.
        CheckError: the weights on the disk do not give the loss that was computed.
    """
    layout, say = Layout(Path(out)), say or (lambda text: None)
    refuse_occupied(layout.root, resume)
    if progress:
        progress("preparing", 0, 1)
    prepared = prepare(settings, corpus if isinstance(corpus, pd.DataFrame) else Path(corpus), model)
    if not (prepare_only or layout.result.exists()):
        ensure_gpus(prepared.job)
    if resume:
        _same_run(layout, prepared)
    if progress:
        progress("preparing", 1, 1)
    layout.root.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(layout.root)
    try:
        remove_temporary_files(layout.root)
        if resume and _status(layout) == "done":
            say(f"{layout.root} is finished already.")
            return FinetuneResult(layout.root)
        manifest = _begin(layout, prepared, resume)
        for note in manifest["notes"]:
            say(note)
        if manifest["resumed"] and not layout.result.exists():
            step = manifest["resumed"][-1]["step"]
            say(f"Going on from step {step}." if step else "No checkpoint was complete: beginning again.")
        if prepare_only:
            many = settings.processes
            say(
                f"Prepared for {many} process{'es' if many > 1 else ''}. Train with: torchrun --nproc-per-node {many} "
                f"-m engramscope.finetune._worker {layout.root}"
            )
            return FinetuneResult(layout.root)
        if not layout.result.exists():
            run_worker(layout, prepared.job, _hearer(progress, say, manifest, settings))
        _end(layout, settings, manifest)
    finally:
        lock.release()
    return FinetuneResult(layout.root)


def _status(layout: Layout) -> str:
    if not layout.manifest.exists():
        return ""
    return str(json.loads(layout.manifest.read_text(encoding="utf-8")).get("status"))


def _same_run(layout: Layout, prepared: Prepared) -> None:
    """Refuse to go on where settings, corpus or model are not those of the earlier run.

    Raises:
        ResultsError: says what differs.
    """
    if not layout.manifest.exists():
        if layout.root.is_dir() and not is_empty(layout.root):
            raise ResultsError(f"{layout.root} holds no fine-tuning that could go on: training.json is missing.")
        return
    before = json.loads(layout.manifest.read_text(encoding="utf-8"))["identity"]
    now = json.loads(json.dumps(prepared.identity))
    faults = [
        f"setting {key}: {before['settings'].get(key)!r} before, {value!r} now"
        for key, value in now["settings"].items()
        if key != "preset" and before["settings"].get(key) != value
    ]
    words = {"corpus": "the corpus is another one", "tokenizer": "the tokenizer is another one"}
    # with another seed or limit another sample of the same corpus is drawn
    sampled = any(before["settings"].get(key) != now["settings"].get(key) for key in ("seed", "limit", "text"))
    faults += [text for key, text in words.items() if before[key] != now[key] and not (key == "corpus" and sampled)]
    faults += [f"{key}: {before[key]!r} before, {now[key]!r} now" for key in ("model", "precision")
               if before[key] != now[key]]  # fmt: skip
    if faults:
        raise ResultsError(
            f"{layout.root} was begun otherwise, and cannot go on: {'; '.join(faults)}. Give what it was begun with, "
            "or a new folder."
        )


def _begin(layout: Layout, prepared: Prepared, resume: bool) -> dict[str, Any]:
    """Everything that is known before training, on the disk; the manifest first, so that a folder can always go on."""
    earlier = json.loads(layout.manifest.read_text(encoding="utf-8")) if resume and layout.manifest.exists() else {}
    notes = [*prepared.notes, *room_note(layout.root, parameters_of(prepared.job.model))]
    resumed = earlier.get("resumed", [])
    if earlier and not layout.result.exists():  # what was trained to its end by hand is only written down
        done = complete_checkpoints(layout.checkpoints)
        resumed = [*resumed, {"at": _now(), "step": done[-1][0] if done else 0}]
    manifest = {
        "schema": SCHEMA, "status": "prepared", "preset": prepared.job.settings.preset,
        "settings": prepared.job.settings.model_dump(mode="json"), "model": {"name": prepared.job.model},
        **prepared.facts, "identity": prepared.identity, "notes": notes, "started": earlier.get("started", _now()),
        "resumed": resumed, "versions": {**versions(), **{name: version(name) for name in ("accelerate", "peft",
                                                                                          "datasets")}},
        "machine": machine(),
    }  # fmt: skip
    write_json(layout.manifest, manifest)
    layout.work.mkdir(exist_ok=True)
    write_table(layout.root / "split.parquet",
                pa.Table.from_pandas(prepared.split.table(prepared.documents), preserve_index=False))  # fmt: skip
    write_chunks(layout.chunks, prepared.train, prepared.validation)
    prepared.job.write(layout.job)
    return manifest


def _hearer(
    progress: Progress | None, say: Callable[[str], None], manifest: dict[str, Any], settings: Settings
) -> Callable[[Mapping[str, Any]], None]:
    def hear(event: Mapping[str, Any]) -> None:
        if event["event"] == "progress":
            if progress:
                progress(event["what"], event["done"], event["total"])
        elif event["event"] == "epoch":
            say(epoch_line(event["row"], settings.epochs))
        elif event["event"] == "supervisor":
            say(event["text"])
        else:
            manifest["notes"].append(event["text"])
            say(event["text"])

    return hear


def _end(layout: Layout, settings: Settings, manifest: dict[str, Any]) -> None:
    """What training found: history, manifest, figures and page from the same rows; then the scaffolding goes."""
    result = json.loads(layout.result.read_text(encoding="utf-8"))
    rows = result["rows"]
    best, trained = best_row(rows), trained_rows(rows)
    assert best is not None
    manifest |= {
        "status": "done", "finished": _now(), "processes": result["processes"],
        "model": {**manifest["model"], "base": result["base"], "parameters": result["parameters"],
                  "trained": result["trained"]},
        "notes": list(dict.fromkeys([*manifest["notes"], *result["notes"]])),
        "seconds": {"training": sum(row["seconds"] for row in rows),
                    "validation": sum(row["validation_seconds"] for row in rows)},
        "tokens": sum(row["tokens"] for row in rows), "peak_gpu_bytes": result["peak_gpu_bytes"],
        "epochs": len(trained), "best_epoch": best["epoch"], "overfitting_epoch": overfitting_epoch(rows),
        "stopped_early": bool(settings.patience) and epochs_since_best(rows) >= settings.patience
                         and len(trained) < settings.epochs,
        "validation_loss": {"before": rows[0]["validation_loss"], "after": best["validation_loss"],
                            "checked": result["checked"]},
        "perplexity": {"before": rows[0]["validation_perplexity"], "after": best["validation_perplexity"]},
        "history": rows,
    }  # fmt: skip
    write_text(layout.root / "history.csv", history_table(rows).to_csv(index=False))
    steps = steps_table(result["steps"])
    write_text(layout.root / STEPS, steps.to_csv(index=False))
    write_page(layout.root, manifest, steps)
    write_json(layout.manifest, manifest)
    shutil.rmtree(layout.work, ignore_errors=True)
    if not settings.keep_checkpoints:
        shutil.rmtree(layout.checkpoints, ignore_errors=True)


def _now() -> str:
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds")

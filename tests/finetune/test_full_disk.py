"""A disk that becomes full while a checkpoint or the model is written: one sentence, nothing lost, and gone on with."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from engramscope.errors import InputError
from engramscope.finetune import _worker, keeper, run, supervise
from engramscope.finetune._worker import FULL, Events, full_sentence, sentence_of
from engramscope.finetune.layout import COMPLETE, Job, Layout, checkpoints, complete_checkpoints
from tests.finetune.small import go_on, prepared, same_runs

NO_ROOM = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
OVER_QUOTA = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
#: what the libraries say that write in C++ and in Rust
IN_TORCH = RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 4096 vs 3986")
ALSO_IN_TORCH = RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")
IN_SAFETENSORS = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
SHORT = ["epochs=2"]


def _as_a_process(layout: Layout, job: Job, hear: Callable[[Mapping[str, Any]], None]) -> None:
    """`run_worker`, but that the process's own entry is called here."""
    del job
    layout.events.unlink(missing_ok=True)
    faults: list[Mapping[str, Any]] = []
    code = _worker.run(layout.root)
    supervise._Reader(layout, hear, faults).read()
    supervise._judge(code, layout, faults)


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "run_worker", _as_a_process)


@pytest.fixture(scope="module")
def whole(dropping: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a disk with room gives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "run_worker", _as_a_process)
        return go_on(dropping, tmp_path_factory.mktemp("runs") / "whole", *SHORT, count=40)


def _fill(patch: pytest.MonkeyPatch, file: Path, error: Exception, mute: bool) -> None:
    """Of one file the disk takes a piece only; `mute`: and of what is said about it, nothing."""
    full: list[Path] = []
    save, save_model, write_json, add = torch.save, PreTrainedModel.save_pretrained, keeper.write_json, Events.add

    def take_a_piece() -> None:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"half")
        full.append(file)
        raise type(error)(*error.args)  # a new one, which has seen nothing yet

    def saving(value: Any, path: Any, *given: Any, **named: Any) -> None:
        if str(path) == str(file):
            take_a_piece()
        save(value, path, *given, **named)

    def saving_model(hf: Any, folder: Any, *given: Any, **named: Any) -> None:
        if Path(folder) / "model.safetensors" == file:
            take_a_piece()
        save_model(hf, folder, *given, **named)

    def refuse(descriptor: int) -> None:
        raise type(error)(*error.args)  # a new one, which has seen nothing yet

    def writing(path: Path, value: Mapping[str, Any]) -> None:
        if path == file:
            # what has this done makes a sentence of its own of it
            full.append(file)
            patch.setattr(os, "fsync", refuse)
        write_json(path, value)

    def adding(events: Events, **event: Any) -> None:
        if full and mute:
            raise NO_ROOM
        add(events, **event)

    patch.setattr(torch, "save", saving)
    patch.setattr(PreTrainedModel, "save_pretrained", saving_model)
    patch.setattr(keeper, "write_json", writing)
    patch.setattr(Events, "add", adding)


@pytest.mark.parametrize(
    ("name", "error", "mute"),
    [
        ("optimizer.pt", NO_ROOM, False),
        pytest.param("optimizer.pt", IN_TORCH, True, marks=pytest.mark.slow),
        pytest.param("model.safetensors", IN_SAFETENSORS, False, marks=pytest.mark.slow),
        pytest.param(COMPLETE, NO_ROOM, False, marks=pytest.mark.slow),
        (COMPLETE, NO_ROOM, True),
    ],
)
def test_a_disk_that_is_full_within_a_checkpoint_is_said_and_nothing_is_lost(
    dropping: str, whole: Any, tmp_path: Path, name: str, error: Exception, mute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = prepared(dropping, tmp_path / "run", *SHORT, "save_steps=1", count=40)
    per_epoch = json.loads(layout.manifest.read_text())["steps"]["per_epoch"]
    step = per_epoch + 2
    assert step < 2 * per_epoch
    with monkeypatch.context() as patch:
        _fill(patch, layout.checkpoints / f"checkpoint-{step}" / name, error, mute)
        with pytest.raises(InputError) as caught:
            go_on(dropping, layout.root, *SHORT, "save_steps=1", count=40)
    assert caught.value.faults == (full_sentence(layout.root),)
    # the best and the last; what was half-written takes no room
    assert [number for number, _ in complete_checkpoints(layout.checkpoints)] == [per_epoch, step - 1]
    assert [number for number, _ in checkpoints(layout.checkpoints)] == [per_epoch, step - 1]
    again = go_on(dropping, layout.root, *SHORT, count=40)
    assert again.manifest()["resumed"][-1]["step"] == step - 1
    same_runs(again, whole)


@pytest.mark.parametrize("mute", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_disk_that_is_full_when_the_model_is_written_costs_no_training(
    dropping: str, whole: Any, tmp_path: Path, mute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = prepared(dropping, tmp_path / "run", *SHORT, count=40)
    final = layout.work / "final"
    with monkeypatch.context() as patch:
        _fill(patch, final / "model.safetensors", IN_SAFETENSORS, mute)
        with pytest.raises(InputError) as caught:
            go_on(dropping, layout.root, *SHORT, count=40)
    assert caught.value.faults == (full_sentence(layout.root),)
    assert not final.exists()
    assert not (layout.root / "config.json").exists(), "a folder with a configuration is taken for a model"
    heard: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(keeper.Keeper, "on_step_end", lambda *_, **__: heard.append("a step"))
        again = go_on(dropping, layout.root, *SHORT, count=40)
    assert not heard
    same_runs(again, whole)


@pytest.mark.parametrize("error", [NO_ROOM, OVER_QUOTA, IN_TORCH, ALSO_IN_TORCH, IN_SAFETENSORS])
def test_every_library_has_its_words_for_a_full_disk(error: Exception, tmp_path: Path) -> None:
    assert sentence_of(error, tmp_path) == full_sentence(tmp_path)


def test_a_full_disk_that_takes_no_words_is_said_by_whoever_started_it(tmp_path: Path) -> None:
    sentence = full_sentence(tmp_path)
    # one of several processes may have got its word out, and torchrun ends with a code of its own
    heard = {"event": "fault", "faults": [sentence], "input": True}
    for code, faults in ((FULL, []), (FULL, [heard]), (1, [heard, heard])):
        with pytest.raises(InputError) as caught:
            supervise._judge(code, Layout(tmp_path), faults)
        assert caught.value.faults == (sentence,)

"""Half precision: on which machine it is used, steps that overflow, and a training in FP16 that goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

from engramscope.errors import InputError
from engramscope.finetune import prepare, resolve_settings, training
from engramscope.finetune.history import History
from engramscope.finetune.keeper import DivergedError, Keeper
from engramscope.finetune.layout import Job, Layout, complete_checkpoints, read_chunks
from engramscope.finetune.prepare import choose_hardware
from engramscope.finetune.training import training_arguments
from tests.finetune.small import go_on, naive_loss, prepared, same_runs, stop_at

pytestmark = pytest.mark.usefixtures("one_process")


def _machine(patch: pytest.MonkeyPatch, cuda: bool, bf16: bool) -> None:
    patch.setattr(torch.cuda, "is_available", lambda: cuda)
    patch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)


@pytest.mark.parametrize(
    ("preset", "precision", "device", "cuda", "bf16", "found", "words"),
    [
        ("clap-1", "", "auto", True, True, ("cuda", "fp16"), ""),
        ("clap-1", "", "cuda", True, False, ("cuda", "fp16"), ""),
        ("clap-2", "", "auto", True, True, ("cuda", "fp32"), ""),
        ("clap-2", "bf16", "auto", True, True, ("cuda", "bf16"), ""),
        ("clap-2", "bf16", "auto", True, False, ("cuda", "fp32"), "BF16 was asked for, but this GPU cannot do it"),
        ("clap-1", "", "cpu", True, True, ("cpu", "fp32"), "FP16 was asked for, but it needs a CUDA device"),
        ("clap-1", "", "auto", False, False, ("cpu", "fp32"), "FP16 was asked for, but it needs a CUDA device"),
        ("clap-2", "", "auto", False, False, ("cpu", "fp32"), ""),
        ("clap-1", "bf16", "cpu", True, False, ("cpu", "bf16"), ""),
    ],
)
def test_the_precision_is_what_was_asked_for_where_the_device_has_it(
    preset: str, precision: str, device: str, cuda: bool, bf16: bool, found: tuple[str, str], words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    _machine(monkeypatch, cuda, bf16)
    settings = resolve_settings(preset, [f"precision={precision}"] if precision else [], device=device)
    *chosen, notes = choose_hardware(settings)
    assert tuple(chosen) == found
    assert len(notes) == bool(words)
    assert words in "".join(notes)


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch, cuda=False, bf16=False)
    with pytest.raises(InputError, match="no CUDA device that torch can use"):
        choose_hardware(resolve_settings("clap-1", device="cuda"))


def test_what_is_chosen_reaches_the_training(gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        _machine(patch, cuda=True, bf16=True)
        layout = prepared(str(gpt2), tmp_path / "run", preset="clap-1")
    job = Job.read(layout.job)
    assert (job.device, job.precision) == ("cuda", "fp16")
    manifest = json.loads(layout.manifest.read_text())
    assert manifest["precision"] == {"asked": "fp16", "used": "fp16"}
    assert not any("FP16" in note for note in manifest["notes"])
    args = training_arguments(job, layout)
    assert (args.fp16, args.bf16, args.use_cpu) == (True, False, False)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_other_precision_is_called_fp16(precision: str, tmp_path: Path) -> None:
    job = Job(resolve_settings("clap-1"), "m", 8, 0, "cpu", precision)
    args = training_arguments(job, Layout(tmp_path))
    assert (args.fp16, args.bf16, args.use_cpu) == (False, precision == "bf16", True)


def _logged(half: bool, *steps: tuple[float, float]) -> Keeper:
    """A keeper that was told the loss and the gradient norm of some steps."""
    keeper = Keeper(Layout(Path("x")), History(), save_minutes=0, save_steps=0, half=half, tell=lambda *_: None,
                    on_epoch=lambda _: None)  # fmt: skip
    for step, (loss, norm) in enumerate(steps, start=1):
        logs = {"loss": loss, "grad_norm": norm, "learning_rate": step / 10}
        keeper.on_log(cast("Any", None), cast("Any", SimpleNamespace(global_step=step)), cast("Any", None), logs)
    return keeper


@pytest.mark.parametrize("norm", [math.inf, math.nan])
def test_an_infinite_gradient_is_a_skipped_step_in_half_precision_and_the_end_in_full(norm: float) -> None:
    steps = ((3.0, 2.0), (3.0, norm), (3.0, 4.0))
    history = _logged(True, *steps).history
    first, second = history.close(1, 3, 2.5, 0.1), history.close(2, 3, 2.5, 0.1)
    found = [first[name] for name in ("gradient_norm_mean", "gradient_norm_max", "skipped_steps", "learning_rate")]
    assert found == [3.0, 4.0, 1, 0.3]
    assert second["skipped_steps"] == 0
    with pytest.raises(DivergedError, match=rf"at step 2 the loss is 3.0 and the gradient norm {norm}\."):
        _logged(False, *steps)


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_a_loss_that_is_no_number_is_the_end_in_every_precision(half: bool, loss: float) -> None:
    with pytest.raises(DivergedError, match=f"at step 1 the loss is {loss} and the gradient norm 2.0"):
        _logged(half, (loss, 2.0))


@contextmanager
def _fp16_here(scale: float) -> Iterator[list[Any]]:
    """FP16 on the processor with the scaler of gradients that a GPU has; accelerate itself leaves both out there.

    The scale that it begins with decides how many steps overflow. Yields the scaler of every training.
    """
    scalers: list[Any] = []
    plain = training.make_tuner

    def with_scaler(*given: Any) -> Any:
        tuner = plain(*given)
        scalers.append(torch.amp.GradScaler("cpu", init_scale=scale))
        tuner.accelerator.native_amp, tuner.accelerator.scaler = True, scalers[-1]
        return tuner

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "choose_hardware", lambda settings: ("cpu", "fp16", []))
        patch.setattr(training, "make_tuner", with_scaler)
        yield scalers


def test_fp16_leaves_out_what_overflows_and_goes_on_where_it_was_stopped(
    dropping: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = 2.0**19
    with _fp16_here(first) as scalers:
        whole = go_on(dropping, tmp_path / "whole", "epochs=2")
        layout = prepared(dropping, tmp_path / "run", "epochs=2")
        per_epoch = json.loads(layout.manifest.read_text())["steps"]["per_epoch"]
        stop_at(layout, per_epoch + 2, lambda: go_on(dropping, layout.root, "epochs=2"), monkeypatch)
        assert (complete_checkpoints(layout.checkpoints)[-1][1] / "scaler.pt").exists()
        validation = read_chunks(layout.chunks)[1]
        again = go_on(dropping, layout.root, "epochs=2")
    steps, history = whole.steps(), whole.history()
    skipped = steps["gradient_norm"].isna()
    assert 0 < skipped.sum() < per_epoch
    for epoch, row in history[1:].set_index("epoch").iterrows():
        norms = steps["gradient_norm"][(epoch - 1) * per_epoch : epoch * per_epoch]
        assert row["skipped_steps"] == norms.isna().sum()
        assert row["gradient_norm_mean"] == pytest.approx(norms.mean(), rel=1e-6)
    # the scaler's own count: it halves its scale wherever it skips, and one that had begun anew would skip again
    assert scalers[0].get_scale() == scalers[2].get_scale() == first / 2 ** skipped.sum()
    same_runs(again, whole)
    loss, _ = naive_loss(whole.folder, validation)
    assert whole.manifest()["validation_loss"]["after"] == pytest.approx(loss, rel=1e-5)
    assert whole.manifest()["precision"]["used"] == "fp16"


def test_steps_that_all_overflow_move_nothing(dropping: str, tmp_path: Path) -> None:
    with _fp16_here(2.0**60):
        result = go_on(dropping, tmp_path / "run", "epochs=1", "warmup_steps=0")
    row = result.history().iloc[1]
    assert row["skipped_steps"] == len(result.steps()) > 0
    assert math.isnan(row["gradient_norm_mean"])
    before, after = (load_file(Path(folder) / "model.safetensors") for folder in (dropping, result.folder))
    assert all(torch.equal(value, after[name]) for name, value in before.items())

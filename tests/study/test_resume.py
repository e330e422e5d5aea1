"""A study that was stopped, in whatever way, goes on and ends with the same tables; another study does not."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from engramscope.cli import _run_app
from engramscope.errors import CheckError, ResultsError
from engramscope.locate.experiment import Experiment
from engramscope.results.read import read_manifest
from engramscope.study import run_study
from tests.tiny_study import pair_rows, same_tables, tokenizer, write_pairs, write_study

SWEEPS = ({"name": "heads", "site": "z", "heads": "each"},)
#: the command line, with one cell per chunk and a pause in each, so that a signal meets it in the middle
SLOW = """
import signal
import time
# a test run started in the background inherits that Ctrl-C is ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
from engramscope.locate import chunks, experiment
chunks.CELLS_PER_CHUNK = 1
really = experiment.Experiment.run
def run(*arguments):
    time.sleep(0.5)
    return really(*arguments)
experiment.Experiment.run = run
from engramscope.cli import main
main()
"""


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engramscope.locate.chunks.CELLS_PER_CHUNK", 1)


@pytest.fixture(scope="module")
def whole(gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run; its study lies beside its results."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("engramscope.locate.chunks.CELLS_PER_CHUNK", 1)
        run_study(write_study(folder, gpt2, SWEEPS), folder / "out")
    return folder / "out"


def _stop_after(monkeypatch: pytest.MonkeyPatch, chunks: int, error: BaseException) -> None:
    really, left = Experiment.run, [chunks]

    def run(self: Experiment, *arguments: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise error
        return really(self, *arguments)

    monkeypatch.setattr(Experiment, "run", run)


def _parts(out: Path) -> int:
    return len(list((out / ".parts").glob("*.parquet")))


def test_ctrl_c_keeps_what_is_there_and_resume_ends_as_an_undisturbed_run(
    gpt2: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write_study(tmp_path, gpt2, SWEEPS), tmp_path / "out"
    with monkeypatch.context() as patched:
        _stop_after(patched, 5, KeyboardInterrupt())
        assert _run_app(["run", str(path), "--out", str(out)]) == 130
    said = capsys.readouterr()
    assert "5 of 12 parts" in said.err
    assert "--resume" in said.err
    assert "Traceback" not in said.err
    assert not said.out.strip()
    assert read_manifest(out)["status"] == "interrupted"
    assert _parts(out) == 5
    assert not list(out.glob(".engramscope-*"))
    # a new run does not overwrite it, and says how to go on
    assert _run_app(["run", str(path), "--out", str(out)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert _parts(out) == 5
    assert _run_app(["run", str(path), "--out", str(out), "--resume"]) == 0
    same_tables(whole, out)
    manifest = read_manifest(out)
    assert manifest["status"] == "complete"
    assert len(manifest["sessions"]) == 2
    # on a finished study there is nothing to do: the same answer, and no byte is touched
    said, before = capsys.readouterr(), {item: item.stat().st_mtime_ns for item in out.iterdir()}
    assert _run_app(["run", str(path), "--out", str(out), "--resume"]) == 0
    assert capsys.readouterr().out == said.out
    assert {item: item.stat().st_mtime_ns for item in out.iterdir()} == before


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_killed_and_interrupted_by_signals_it_still_ends_the_same(gpt2: Path, whole: Path, tmp_path: Path) -> None:
    path, out = write_study(tmp_path, gpt2, SWEEPS), tmp_path / "out"
    resume: list[str] = []
    for number, want in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130), (signal.SIGTERM, 130)):
        command = [sys.executable, "-c", SLOW, "run", str(path), "--out", str(out), *resume]
        before = _parts(out)
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        _wait_for(lambda before=before, process=process: _parts(out) >= before + 2 or process.poll() is not None)
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
        assert process.returncode == want, said
        assert "Traceback" not in said
        assert ("--resume" in said) == (number != signal.SIGKILL)
        assert not (out / "effects.parquet").exists()
        resume = ["--resume"]
    assert 6 <= _parts(out) < 12
    assert _run_app(["run", str(path), "--out", str(out), "--resume", "--quiet"]) == 0
    same_tables(whole, out)


def _wait_for(there: Any, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not there() and time.monotonic() < end:
        time.sleep(0.02)


@pytest.mark.parametrize("moment", ["summarise_effects", "write_report"])
def test_stopped_after_the_sweep(
    moment: str, gpt2: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = write_study(tmp_path, gpt2, SWEEPS), tmp_path / "out"

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(f"engramscope.study.{moment}", stop)
        with pytest.raises(KeyboardInterrupt, match="12 of 12"):
            run_study(path, out)
    run_study(path, out, resume=True)
    same_tables(whole, out)
    assert (out / "report.html").exists()


def test_interrupted_before_the_sweep_nothing_is_left(
    gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write_study(tmp_path, gpt2, SWEEPS), tmp_path / "out"

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("engramscope.study.set_up", stop)
    assert _run_app(["run", str(path), "--out", str(out)]) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert not out.exists()


@pytest.fixture
def halted(gpt2: Path, tmp_path: Path) -> Path:
    """A folder with an interrupted study and a model of its own, which a test may change."""
    import shutil

    folder = tmp_path / "halted"
    shutil.copytree(gpt2, tmp_path / "model")
    path = write_study(folder, tmp_path / "model", SWEEPS)
    with pytest.MonkeyPatch.context() as patched:
        _stop_after(patched, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            run_study(path, folder / "out")
    return folder


def _resume(folder: Path) -> str:
    with pytest.raises(ResultsError) as caught:
        run_study(folder / "study.toml", folder / "out", resume=True)
    assert _parts(folder / "out") == 2
    return str(caught.value)


def test_a_changed_study_says_what_differs(halted: Path) -> None:
    text = (halted / "study.toml").read_text()
    (halted / "study.toml").write_text(text.replace("resamples = 200", "resamples = 300"))
    assert "stats.resamples: 200 -> 300" in _resume(halted)
    # what only says how it is computed may change
    (halted / "study.toml").write_text(text + "\n[run]\ncheck = 3\n")
    assert run_study(halted / "study.toml", halted / "out", resume=True).manifest()["status"] == "complete"


def test_changed_pairs_say_which(halted: Path) -> None:
    rows = pair_rows()
    for key, value in (("correct", [" drum"]), ("labels", {"kind": "other"}), ("group", "another")):
        write_pairs(halted / "pairs.jsonl", [{**row, key: value} if row["id"] == "p3" else row for row in rows])
        assert "the pairs (p3)" in _resume(halted)
    write_pairs(halted / "pairs.jsonl", list(reversed(rows)))
    assert "order of the pairs" in _resume(halted)


def test_changed_weights_are_noticed(halted: Path) -> None:
    file = halted.parent / "model" / "model.safetensors"
    weights = load_file(file)
    weights["transformer.h.0.mlp.c_fc.bias"][0] += 1e-3
    save_file(weights, file, metadata={"format": "pt"})
    assert "weights" in _resume(halted)


def test_a_changed_configuration_is_named_and_what_does_not_matter_is_not(halted: Path) -> None:
    file = halted.parent / "model" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "layer_norm_epsilon": 0.1}))
    assert "model's configuration: layer_norm_epsilon: 1e-05 -> 0.1" in _resume(halted)
    file.write_text(json.dumps({**config, "transformers_version": "0.0.1", "_name_or_path": "/elsewhere"}))
    assert run_study(halted / "study.toml", halted / "out", resume=True).manifest()["status"] == "complete"


def test_a_changed_tokenizer_is_noticed(halted: Path) -> None:
    tokenizer(bos=True).save_pretrained(halted.parent / "model")
    assert "the tokenizer" in _resume(halted)


def test_unpatched_values_that_are_not_the_stored_ones_are_noticed(
    halted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = Experiment.base_value

    def moved(self: Experiment, *arguments: Any) -> Any:
        value = really(self, *arguments)
        return None if value is None else value + 0.01

    monkeypatch.setattr(Experiment, "base_value", moved)
    assert "by up to 0.01" in _resume(halted)


def test_another_version_of_the_program_is_noticed(halted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engramscope.study_inputs.version", lambda _: "99.0")
    assert "-> 99.0" in _resume(halted)


def test_a_full_disk_in_the_middle_loses_nothing(
    gpt2: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write_study(tmp_path, gpt2, SWEEPS), tmp_path / "out"
    really, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        really(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert _run_app(["run", str(path), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "disk is full" in said
    assert "Traceback" not in said
    assert 1 <= _parts(out) < 12
    assert json.loads((out / "manifest.json").read_text())["status"] == "running"
    assert not list(out.rglob("*.tmp"))
    assert _run_app(["run", str(path), "--out", str(out), "--resume"]) == 0
    same_tables(whole, out)


def test_cells_that_do_not_agree_with_their_recomputation_are_an_error(
    gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    really = Experiment.run

    def run(self: Experiment, *arguments: Any) -> Any:
        columns = really(self, *arguments)
        return {**columns, "patched": [value + 0.01 for value in columns["patched"]]}

    path, out = write_study(tmp_path, gpt2, SWEEPS), tmp_path / "out"
    monkeypatch.setattr(Experiment, "run", run)
    with pytest.raises(CheckError, match=r"differ from the study's by up to 0\.01"):
        run_study(path, out)
    manifest = read_manifest(out)
    assert manifest["status"] == "failed"
    assert manifest["parity"]["max_abs_diff"] == pytest.approx(0.01, abs=1e-4)
    assert not (out / "report.html").exists()
    assert _run_app(["run", str(path), "--out", str(out), "--resume"]) == 1
    assert "cannot be trusted" in capsys.readouterr().err


def test_a_check_that_compared_nothing_is_an_error(gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engramscope.study_steps.lookup", lambda effects: lambda *_: None)
    with pytest.raises(CheckError, match="None of the study's cells"):
        run_study(write_study(tmp_path, gpt2, SWEEPS), tmp_path / "out")
    assert read_manifest(tmp_path / "out")["status"] == "failed"

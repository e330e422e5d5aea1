"""The commands as a newcomer meets them: help, a first study file, lists, the report again, quiet and plain output."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import torch

from engramscope.cli import _run_app, app
from engramscope.study_file import read_study
from engramscope.tasks import task_names
from tests.tiny_study import pair_rows, write_pairs, write_study

COMMANDS = sorted(command.name or command.callback.__name__ for command in app.registered_commands if command.callback)


def test_the_commands_of_the_contract_are_there() -> None:
    assert COMMANDS == [
        "check", "clap", "compare", "demo", "edit", "edit-sequence", "editors", "evaluate", "finetune", "heads",
        "locate", "locate-edit", "model", "new", "practices", "questions", "report", "reproduce", "run", "table4",
        "tasks", "train-editor",
    ]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run_app([command, "--help"]) == 0
    said = capsys.readouterr().out
    assert f"Example: engramscope {command}" in said
    assert "\x1b" not in said


def test_a_pair_file_becomes_a_study_that_is_accepted_as_it_stands(
    gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pairs(tmp_path / "pairs.jsonl", pair_rows(4))
    monkeypatch.chdir(tmp_path)
    assert _run_app(["new", "first.toml", "--model", str(gpt2), "--pairs", "pairs.jsonl"]) == 0
    assert "check first.toml" in capsys.readouterr().out
    assert _run_app(["check", "first.toml"]) == 0
    assert _run_app(["run", "first.toml", "--out", "out", "--quiet"]) == 0
    assert read_study(tmp_path / "first.toml").name == "first"
    assert _run_app(["new", "first.toml"]) == 2
    assert "--force" in capsys.readouterr().err


def test_a_pair_file_is_found_from_another_folder(gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "studies").mkdir()
    write_pairs(tmp_path / "pairs.jsonl", pair_rows(4))
    monkeypatch.chdir(tmp_path)
    assert _run_app(["new", "studies/a", "--model", str(gpt2), "--pairs", "pairs.jsonl"]) == 0
    assert read_study(tmp_path / "studies" / "a.toml").pairs.file == "../pairs.jsonl"
    assert _run_app(["check", "studies/a.toml", "--quiet"]) == 0


@pytest.mark.parametrize("task", task_names())
def test_every_task_gives_a_study_file_that_names_its_corruption(task: str, tmp_path: Path) -> None:
    from engramscope.study_inputs import read_inputs
    from engramscope.tasks import TASKS

    path = tmp_path / "st.udy.toml"
    assert _run_app(["new", str(path), "--task", task]) == 0
    inputs = read_inputs(path)
    assert inputs.study.corruption.method == TASKS.get(task).corruption
    assert inputs.study.model.name == TASKS.get(task).model


def test_new_refuses_what_nobody_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run_app(["new", str(tmp_path / "a.toml"), "--task", "storeis"]) == 2
    assert "'stories'" in capsys.readouterr().err
    assert _run_app(["new", str(tmp_path / "a.toml"), "--task", "stories", "--pairs", "x.jsonl"]) == 2
    assert _run_app(["new", str(tmp_path / "no" / "such" / "a.toml")]) == 2
    assert not list(tmp_path.iterdir())


def test_the_starter_is_toml_whatever_the_names_hold(tmp_path: Path) -> None:
    path = tmp_path / '"it\'s" 🙂.toml'
    assert _run_app(["new", str(path), "--model", 'C:\\models\\"mine" {x}']) == 0
    assert tomllib.loads(path.read_text(encoding="utf-8"))["model"]["name"] == 'C:\\models\\"mine" {x}'


def test_lists_and_models(gpt2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run_app(["tasks"]) == 0
    said = capsys.readouterr().out
    for name in ("clap_epilepsy", "gaussian", "logit_diff", "jsonl", "mini"):
        assert name in said
    assert _run_app(["model", str(gpt2)]) == 0
    said += capsys.readouterr().out
    for word in ("gpt2", "resid_post", "write-back"):
        assert word in said
    assert "\x1b" not in said


def test_quiet_is_quiet_and_the_report_can_be_written_again(
    gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write_study(tmp_path, gpt2), tmp_path / "out"
    assert _run_app(["run", str(path), "--out", str(out), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    written = []
    for _ in range(2):
        (out / "report.html").unlink()
        assert _run_app(["report", str(out)]) == 0
        assert capsys.readouterr().out.strip() == str(out / "report.html")
        written.append((out / "report.html").read_bytes())
    assert written[0] == written[1]
    assert _run_app(["report", str(out), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert _run_app(["check", str(path), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_errors_of_a_quiet_check_are_still_said(gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = pair_rows(4)
    rows[0]["corrupted"] = rows[0]["clean"]
    del rows[0]["corrupted_spans"]
    assert _run_app(["check", str(write_study(tmp_path, gpt2, rows=rows)), "--quiet"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "p0" in said.err


def test_the_executor_can_be_chosen_and_finds_the_same(
    gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_study(tmp_path, gpt2)
    for name in ("traversal", "reference"):
        assert _run_app(["run", str(path), "--out", str(tmp_path / name), "--executor", name]) == 0
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        assert (manifest["executor"]["requested"], manifest["executor"]["used"]) == (name, name)
    one, other = (pd.read_parquet(tmp_path / name / "effects.parquet") for name in ("traversal", "reference"))
    keys = ["pair", "site", "layer", "head", "position", "position_role", "metric", "seed", "direction", "sweep"]
    one, other = (table.sort_values(keys, ignore_index=True) for table in (one, other))
    # recovery is a ratio, and its gap may be tiny
    pd.testing.assert_frame_equal(one.drop(columns="recovery"), other.drop(columns="recovery"), atol=1e-4, rtol=0)
    assert one["effect"].abs().max() > 1e-2
    assert "\x1b" not in capsys.readouterr().out
    assert _run_app(["run", str(path), "--out", str(tmp_path / "x"), "--executor", "fast"]) == 2
    assert "'fast' is no executor" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError(),
              RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")],
)  # fmt: skip
def test_memory_that_does_not_suffice_is_one_message(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*given: object, **more: object) -> None:
        raise error

    monkeypatch.setattr("engramscope.models.load.load_model", load)
    assert _run_app(["table4", "--methods", "ft", "--out", "nowhere"]) == 1
    assert "The memory of the machine or of its device does not suffice." in capsys.readouterr().err


def test_another_fault_of_ours_is_not_called_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*given: object, **more: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr("engramscope.models.load.load_model", load)
    with pytest.raises(RuntimeError, match="shapes differ"):
        _run_app(["table4", "--methods", "ft", "--out", "nowhere"])


def test_the_program_as_it_is_installed_survives_a_terminal_without_unicode() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "engramscope.cli", "tasks"], env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert b"\x1b[3" not in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal")
def test_progress_appears_on_a_terminal_and_is_cleared(gpt2: Path, tmp_path: Path) -> None:
    path = write_study(tmp_path, gpt2)
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    command = [sys.executable, "-m", "engramscope.cli", "run", str(path), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while process.poll() is None or len(shown) == 0:
        try:
            shown += os.read(ours, 4096)
        except OSError:
            break
    assert process.wait() == 0
    for word in (b"starting", b"loading the model", b"baselines", b"patching", b"statistics", b"audit and report"):
        assert word in shown, word


def test_an_interrupted_demonstration_does_not_speak_of_resuming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt("go on with --resume")

    monkeypatch.setattr("engramscope.study.run_study", stop)
    assert _run_app(["demo", "--out", str(tmp_path / "demo")]) == 130
    said = capsys.readouterr().err
    assert "begins anew" in said
    assert "--resume" not in said

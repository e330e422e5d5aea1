"""The commands: what they print, what they refuse, and their exit codes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from engramscope import cli
from engramscope.cli._app import EXIT_FAILED, EXIT_INPUT, EXIT_INTERRUPTED, EXIT_OK

from .fake_pubmed import many, serve


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli._run_app([str(one) for one in ("corpus", *arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def write(path: Path) -> Path:
    path.write_text('PMID,Title,text\n1,A,"Epilepsy, mostly."\n2,B,\n', encoding="utf-8")
    return path


def test_read_says_what_came_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "a.csv")
    out = tmp_path / "out"
    code, said, complaint = run(
        capsys, "read", file, "--out", out, "--terms", "epilepsy, EEG", "--columns", "Abstract=text"
    )
    assert (code, complaint) == (EXIT_OK, "")
    assert "1 abstracts" not in said
    assert "1 abstract (2 words) is left of 2 records." in said
    assert "Dropped: 1 without an abstract." in said
    assert "Mentions as whole words: epilepsy 1 in 1 abstract, EEG 0 in 0 abstracts." in said
    assert f"Page: {out / 'report.html'}" in said
    assert json.loads((out / "manifest.json").read_text())["source"]["columns"] == {"Abstract": "text"}


def test_quiet_is_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "a.csv")
    assert run(capsys, "read", file, "-o", tmp_path / "o", "--columns", "abstract=text", "--quiet") == (EXIT_OK, "", "")


def test_a_fault_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "a.csv")
    code, said, complaint = run(capsys, "read", file, "-o", tmp_path / "o")
    assert (code, said) == (EXIT_INPUT, "")
    assert complaint.count("\n") == 1
    assert "found are 'PMID', 'Title', 'text'" in complaint
    code, _, complaint = run(capsys, "read", file, "-o", tmp_path / "o", "--columns", "Abstract")
    assert (code, complaint.count("\n")) == (EXIT_INPUT, 1)
    assert run(capsys, "pubmed", "--query", " ", "--endpoint", "ftp://x", "-o", tmp_path / "o")[0] == EXIT_INPUT
    code, _, complaint = run(capsys, "pubmed", "--query", "caf\udce9", "-o", tmp_path / "o")
    assert (code, "no text" in complaint) == (EXIT_INPUT, True)
    assert not (tmp_path / "o").exists()


def test_pubmed_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engramscope.corpus.eutils.PACE_WITH_KEY_S", 0.0)
    monkeypatch.setenv("NCBI_API_KEY", "from-the-environment")
    with serve(many(12)) as server:
        arguments = ["pubmed", "--query", "epilepsy[ti]", "--max", 10, "--batch", 4, "--endpoint", server.url]
        code, said, _ = run(capsys, *arguments, "-o", tmp_path / "o")
        assert code == EXIT_OK
        assert "PubMed found 12 records; 10 were asked for and 10 came." in said
        assert {fields["api_key"] for _, fields in server.calls} == {"from-the-environment"}
        code, _, complaint = run(capsys, *arguments, "-o", tmp_path / "o")
        assert (code, "go on there with --resume" in complaint) == (EXIT_INPUT, True)
        assert run(capsys, *arguments, "-o", tmp_path / "o", "--resume", "--terms", "EEG")[0] == EXIT_OK
        assert len(server.calls) == 4


def test_no_network_is_one_line_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engramscope.corpus.eutils.FIRST_WAIT_S", 0.001)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{free.getsockname()[1]}"
    code, said, complaint = run(capsys, "pubmed", "--query", "x", "--endpoint", dead, "-o", tmp_path / "o")
    assert (code, said, complaint.count("\n")) == (EXIT_FAILED, "", 1)
    assert "Is there a network" in complaint
    assert not (tmp_path / "o").exists()


def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("engramscope.corpus.build.retrieve", stop)
    out = tmp_path / "o"
    code, _, complaint = run(capsys, "pubmed", "--query", "x", "-o", out)
    assert code == EXIT_INTERRUPTED
    assert "the same command begins anew" in complaint
    assert not out.exists()
    (out / "retrieved").mkdir(parents=True)
    (out / "retrieved" / "plan.json").write_text("{}", encoding="utf-8")
    code, _, complaint = run(capsys, "pubmed", "--query", "x", "-o", out, "--resume")
    assert code == EXIT_INTERRUPTED
    assert f"--resume goes on in {out}." in complaint


def test_help_shows_an_example_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {**os.environ, "NCBI_API_KEY": "top-secret", "COLUMNS": "100"}
    for command in ("pubmed", "read"):
        shown = subprocess.run(
            [sys.executable, "-m", "engramscope.cli", "corpus", command, "--help"],
            capture_output=True, text=True, check=True, env=environment,
        ).stdout  # fmt: skip
        assert f"Example: engramscope corpus {command}" in " ".join(shown.split())
        assert "top-secret" not in shown

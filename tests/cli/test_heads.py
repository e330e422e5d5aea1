"""The heads command: what it prints, what it writes, and what it says when something is wrong."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from engramscope import attention_scores, load_model
from engramscope.cli import _run_app

SMALL = ["--sequences", "2", "--length", "6", "--device", "cpu"]


def test_heads_lists_the_best_of_every_score_and_writes_all(
    gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "heads.csv"
    assert _run_app(["heads", str(gpt2), *SMALL, "--top", "3", "--csv", str(out)]) == 0
    said = capsys.readouterr().out
    expected = attention_scores(load_model(str(gpt2), device="cpu"), sequences=2, length=6)
    table = pd.read_csv(out)
    pd.testing.assert_frame_equal(table, expected.table, check_dtype=False, atol=1e-6)
    assert len(table) == 12
    for score in ("previous_token", "induction", "copy"):
        best = expected.top(score, 1).iloc[0]
        assert f"{best['layer']:.0f}.{best['head']:.0f}  {best[score]:.2f}" in said
    assert "2 sequences of 6 random tokens, each twice, with no special tokens in front." in said
    assert str(out) in said.replace("\n", "")
    assert "\x1b" not in said
    # a title of two lines, the table's own lines, three heads
    assert sum(line.startswith("│") for line in said.splitlines()) == 3


def test_words_from_a_file_and_a_bos_in_front(gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = tmp_path / "words.txt"
    words.write_text("Anna\nBob\nNebuchadnezzar\n")
    assert _run_app(["heads", str(gpt2), *SMALL, "--bos", "--copy-words", str(words)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Copy scores from 2 tokens." in said
    assert "left out: Nebuchadnezzar." in said
    assert "with one special token in front" in said


def test_quiet_prints_nothing(gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run_app(["heads", str(gpt2), *SMALL, "--quiet", "--csv", str(tmp_path / "a.csv")]) == 0
    assert capsys.readouterr().out == ""
    assert (tmp_path / "a.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--copy-words", "missing.txt"], 2, "The words cannot be read from missing.txt: No such file"),
        (["--top", "0"], 2, "top"),
        (["--dtype", "float23"], 2, "Unknown dtype 'float23'"),
        (["--csv", "no folder/heads.csv"], 2, "could not be written"),
    ],
)
def test_faults_are_sentences(
    gpt2: Path, tmp_path: Path, arguments: list[str], code: int, sentence: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert _run_app(["heads", str(gpt2), *SMALL, *arguments]) == code
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []


def test_heads_explains_itself_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run_app(["heads", "--help"]) == 0
    assert "Example: engramscope heads" in capsys.readouterr().out

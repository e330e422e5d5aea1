"""What is written, and the command from its input to a study that may run."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from engramscope import bundled
from engramscope.cli import _run_app
from engramscope.errors import InputError
from engramscope.questions import propose, review_path, write
from engramscope.questions.words import summary
from tests.questions.corpora import gpt2_tokenizer, mini, planted, real_corpus


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "corpus"
    folder.mkdir()
    planted().to_parquet(folder / "corpus.parquet")
    return folder


def test_cells_that_a_spreadsheet_would_run_are_quoted(tmp_path: Path) -> None:
    found = propose(planted(), mini())
    nasty = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1", 'a "b", c', "two\nlines"]
    evidence = found.evidence.assign(sentence_1=nasty)
    write(replace(found, evidence=evidence), tmp_path / "q.jsonl")
    with (tmp_path / "q.review.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["sentence_1"] for row in rows] == [
        "'=1+1", "'+1", "'-1", "'@SUM(A1)", "'\t=1", "' =1", 'a "b", c', "two\nlines",
    ]  # fmt: skip
    assert [row["id"] for row in rows] == [pair.id for pair in found.pairs]
    assert rows[0]["sentences"] == "", "what a definitional question does not have stays empty"
    assert float(rows[-1]["log_likelihood_ratio"]) > 0


def test_edited_files_are_not_overwritten(tmp_path: Path) -> None:
    found = propose(planted(), mini())
    path = tmp_path / "q.jsonl"
    assert write(found, path) == review_path(path) == tmp_path / "q.review.csv"
    path.write_text("edited")
    with pytest.raises(InputError, match="--force"):
        write(found, path)
    assert path.read_text() == "edited"
    write(found, path, force=True)
    assert path.read_text().startswith('{"id"')


@pytest.mark.parametrize(("name", "said"), [("q.csv", ".jsonl"), ("no/q.jsonl", "missing")])
def test_names_that_cannot_be_written(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        write(propose(planted(), mini()), tmp_path / name)


def test_the_summary_counts_what_was_kept_and_left_out() -> None:
    found = propose(planted(), mini(), terms=["nowhere"])
    text = "\n".join(summary(found, 57))
    assert "4 definitional and 4 associative questions from 57 abstracts" in text
    assert "1  key term 'nowhere': not in the corpus" in text


def test_from_a_corpus_to_a_study_that_may_run(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run_app(["questions", str(corpus), "--terms", "epilepsy, EEG", "--out", "q.jsonl"]) == 0
    said = capsys.readouterr().out
    assert "Next: engramscope new study.toml --model mini --pairs q.jsonl\n" in said
    assert "engramscope new moved.toml --model TUNED --base mini --pairs q.jsonl" in said
    assert "base_model" in said
    assert _run_app(["new", "study.toml", "--model", "mini", "--pairs", "q.jsonl"]) == 0
    assert _run_app(["check", "study.toml"]) == 0


def test_questions_with_whole_answers_run_under_the_answer_swap(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run_app(["questions", str(corpus), "--form", "answers", "--out", "q.jsonl"]) == 0
    assert "Next: engramscope new" in capsys.readouterr().out
    assert _run_app(["new", "study.toml", "--model", "mini", "--pairs", "q.jsonl"]) == 0
    assert 'method = "answer"' in Path("study.toml").read_text(encoding="utf-8")
    assert _run_app(["check", "study.toml"]) == 0


def test_questions_for_a_tuned_model_are_asked_against_the_one_before_it(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = Path("my tuned")
    shutil.copytree(bundled.folder("mini"), tuned)
    (tuned / "training.json").write_text(json.dumps({"model": {"name": "mini"}}), encoding="utf-8")
    assert _run_app(["questions", str(corpus), "--model", str(tuned), "--out", "q.jsonl"]) == 0
    line = "engramscope new moved.toml --model 'my tuned' --base mini --pairs q.jsonl"
    assert line in capsys.readouterr().out
    assert _run_app(shlex.split(line)[1:]) == 0
    text = Path("moved.toml").read_text(encoding="utf-8")
    assert 'method = "base_model"' in text
    assert 'base = "mini"' in text
    # a model of random weights did not begin from the model whose configuration it has
    told = {"model": {"name": "mini"}, "settings": {"random_weights": True}}
    (tuned / "training.json").write_text(json.dumps(told), encoding="utf-8")
    assert _run_app(["questions", str(corpus), "--model", str(tuned), "--out", "r.jsonl"]) == 0
    said = capsys.readouterr().out
    assert "Next: engramscope new" in said
    assert "--base" not in said


def test_a_file_of_abstracts_in_place_of_a_corpus_is_told_what_to_type(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path("my three.csv")
    file.write_text("Abstract\nSome text.\n", encoding="utf-8")
    assert _run_app(["questions", str(file), "--out", "p.jsonl"]) == 2
    said = capsys.readouterr().err
    assert "`engramscope corpus read 'my three.csv' --out corpus` makes one" in said
    assert ".." not in said
    Path("broken.parquet").write_bytes(b"none")
    assert _run_app(["questions", "broken.parquet", "--out", "p.jsonl"]) == 2
    said = capsys.readouterr().err
    assert "broken.parquet cannot be read as a corpus table" in said
    assert ".." not in said


def test_quiet_says_nothing_and_faults_leave_nothing(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run_app(["questions", str(corpus), "--out", "q.jsonl", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert _run_app(["questions", str(corpus), "--out", "q.jsonl"]) == 2
    assert "--force" in capsys.readouterr().err
    assert _run_app(["questions", str(corpus), "--out", "p.jsonl", "--min-documents", "50"]) == 2
    said = capsys.readouterr().err
    assert "Try --min-documents 1 (now 50), more key terms (--terms epilepsy,EEG), or a larger corpus." in said
    assert _run_app(["questions", "nowhere", "--out", "p.jsonl"]) == 2
    assert not list(Path().glob("p.*"))


def test_real_questions_for_a_gpt2_are_accepted_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, table = gpt2_tokenizer(), real_corpus()
    monkeypatch.chdir(tmp_path)
    tokenizer.save_pretrained("random-gpt2")
    GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=2)).save_pretrained("random-gpt2")
    table.to_parquet("corpus.parquet")
    assert _run_app(["questions", "corpus.parquet", "--model", "random-gpt2", "--quiet"]) == 0
    assert _run_app(["new", "study.toml", "--model", "random-gpt2", "--pairs", "questions.jsonl"]) == 0
    assert _run_app(["check", "study.toml"]) == 0

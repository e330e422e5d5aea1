"""The stages of a whole study one by one: what they take in, and what a killed run leaves to them."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from engramscope.clap.asked import learned
from engramscope.clap.call import Call, relative
from engramscope.clap.corpus_stage import corpus_of, said_of
from engramscope.clap.run import _earlier
from engramscope.clap.study import ClapStudy, read_clap_study
from engramscope.cli import _run_app
from engramscope.corpus import eutils, read_files
from engramscope.errors import InputError, ResultsError
from engramscope.finetune.documents import read_documents
from engramscope.finetune.split import split_documents
from tests.clap.synthetic import STUDY, write_clap_study, write_corpus
from tests.corpus.fake_pubmed import many, serve


def _call(folder: Path, text: str = STUDY) -> Call:
    path = write_clap_study(folder, text)
    return Call(read_clap_study(path), folder / "out", folder, None, lambda _: None)


@pytest.mark.parametrize("there", [True, False])
def test_without_a_network_nothing_is_in_the_way_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    monkeypatch.setattr(eutils, "FIRST_WAIT_S", 0.01)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    source = f'query = "epilepsy"\nendpoint = "http://127.0.0.1:{port}/"'
    study, out = write_clap_study(tmp_path, STUDY.replace('file = "abstracts.csv"', source)), tmp_path / "out"
    if there:
        out.mkdir()
    assert _run_app(["clap", str(study), "--out", str(out), "--until", "corpus"]) == 1
    said = capsys.readouterr().err
    assert "Is there a network" in said
    assert "--corpus FILE" in said
    assert "Traceback" not in said
    assert not there or not list(out.iterdir())
    assert out.exists() is there
    file = str(tmp_path / "abstracts.csv")
    assert _run_app(["clap", str(study), "--out", str(out), "--until", "corpus", "--corpus", file]) == 0
    assert (out / "corpus" / "manifest.json").is_file()


@pytest.mark.parametrize("limit", [None, 20])
def test_what_was_learned_is_told_by_row_and_not_by_pmid(tmp_path: Path, limit: int | None) -> None:
    corpus = read_files([write_corpus(tmp_path / "a.csv")], tmp_path / "corpus")
    table = corpus.table.assign(PMID="")
    documents = read_documents(table, "abstract", ("seizure",), limit, 3)
    split = split_documents(documents, ("seizure",), 0.2, 3)
    seen = learned(table, split.table(documents), titles=False)
    wanted = [text for text, held in zip(documents.texts, split.held_out, strict=True) if not held]
    assert list(seen["Abstract"]) == wanted
    assert len(wanted) < (limit or len(table))
    assert set(seen["Title"]) == {""}
    assert list(learned(table, split.table(documents), titles=True)["Title"]) == list(table.loc[seen.index, "Title"])


def test_mentions_are_those_of_the_studys_terms(tmp_path: Path) -> None:
    call = _call(tmp_path)
    read_files([tmp_path / "abstracts.csv"], tmp_path / "made", terms=["outcome"])
    given = _call(tmp_path, STUDY.replace('file = "abstracts.csv"', 'file = "made"'))
    said = said_of(given, corpus_of(given))
    assert [row["term"] for row in said["terms"]] == ["epilepsy", "seizure"]
    assert said["folder"] == str(tmp_path / "made")
    own = said_of(call, corpus_of(call))
    assert own["terms"] == said["terms"]
    assert own["folder"] == "corpus"


def test_a_corpus_that_is_not_finished_is_refused_and_ones_own_is_made_again(tmp_path: Path) -> None:
    call = _call(tmp_path)
    whole = corpus_of(call).table
    (call.folder / "corpus" / "manifest.json").unlink()
    (call.folder / "corpus" / ".lock").touch()
    pd.testing.assert_frame_equal(corpus_of(call).table, whole)
    shutil.copytree(call.folder / "corpus", tmp_path / "half")
    (tmp_path / "half" / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"half has no manifest\.json"):
        corpus_of(_call(tmp_path, STUDY.replace('file = "abstracts.csv"', 'file = "half"')))


def test_pubmed_is_asked_as_the_study_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCBI_API_KEY", "key-of-mine")
    with serve(many(12)) as server:
        source = f'query = "epilepsy"\nmost = 7\nemail = "me@example.org"\nendpoint = "{server.url}"'
        call = _call(tmp_path, STUDY.replace('file = "abstracts.csv"', source))
        assert len(corpus_of(call).table) == 7
        asked = [fields for _, fields in server.calls]
        assert asked
        assert all((one["api_key"], one["email"]) == ("key-of-mine", "me@example.org") for one in asked)
    assert "example.org" not in json.dumps(call.study.identity())


def test_what_is_not_done_yet_may_be_asked_for_otherwise(tmp_path: Path) -> None:
    folder, study = tmp_path / "out", read_clap_study(write_clap_study(tmp_path))
    folder.mkdir()
    begun: dict[str, Any] = {"study": study.identity(), "files": {}}
    (folder / "clap.json").write_text(json.dumps(begun), encoding="utf-8")
    other = json.loads(json.dumps(study.identity()))
    other["questions"]["min_documents"], other["statistics"]["resamples"] = 2, 300
    assert _earlier(folder, begun | {"study": other}, resume=True)
    (folder / "corpus").mkdir()
    (folder / "corpus" / "manifest.json").touch()
    assert _earlier(folder, begun | {"study": other}, resume=True)
    (folder / "questions").mkdir()
    (folder / "questions" / "prompts.jsonl").touch()
    with pytest.raises(ResultsError, match="min_documents: 1 -> 2") as caught:
        _earlier(folder, begun | {"study": other}, resume=True)
    assert "resamples" not in str(caught.value)
    (folder / "as-published").mkdir()
    (folder / "as-published" / "manifest.json").touch()
    with pytest.raises(ResultsError, match="resamples: 200 -> 300"):
        _earlier(folder, begun | {"study": other}, resume=True)


def test_an_adapter_alone_is_refused_before_it_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = write_clap_study(tmp_path, STUDY.replace('"epochs=1"', '"epochs=1", "lora={}", "merge=false"'))
    assert _run_app(["clap", str(study), "--out", str(tmp_path / "out")]) == 2
    assert "leaves an adapter" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_paths_inside_the_folder_are_relative_and_others_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert relative(Path("out/corpus"), Path("out")) == "corpus"
    assert relative(tmp_path / "out" / "corpus", Path("out")) == "corpus"
    assert relative(Path("studies/corpus"), Path("out")) == str(tmp_path / "studies" / "corpus")


def test_an_identity_knows_nothing_of_whom_to_write_to() -> None:
    fields = ClapStudy.model_validate(
        {"schema": 1, "name": "x", "corpus": {"query": "q", "email": "a@b"}, "model": {"name": "mini"}}
    ).identity()
    assert "email" not in fields["corpus"]

"""Bad input through the command line: one clear message, exit code 2, no traceback, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engramscope.cli import _run_app
from tests.tiny_study import pair_rows, write_pairs, write_study

Say = Any
MLP = {"name": "mlp", "site": "mlp_out"}


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Run the command line and give its exit code and what it said on stderr."""

    def run(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        code = _run_app([str(argument) for argument in arguments])
        said = capsys.readouterr().err
        assert "Traceback" not in said
        assert all(line.startswith("engramscope: ") for line in said.splitlines() if line.strip())
        return code, said

    return run


@pytest.fixture
def refused(say: Say, tmp_path: Path) -> Say:
    """Run a study, which must be refused with exit code 2 and leave nothing; give the message."""

    def run(path: Path, *more: str) -> str:
        out = tmp_path / "refused"
        code, said = say("run", path, "--out", out, *more)
        assert code == 2, said
        assert not out.exists()
        assert said.strip()
        return said

    return run


def test_a_broken_line_is_named_by_its_number(gpt2: Path, tmp_path: Path, refused: Say) -> None:
    path = write_study(tmp_path, gpt2)
    lines = [json.dumps(row) for row in pair_rows(4)]
    (tmp_path / "pairs.jsonl").write_text("\n".join([*lines[:2], '{"id": "x", "clean"', *lines[2:]]) + "\n")
    assert "line 3" in refused(path)


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_pair_file(content: str, gpt2: Path, tmp_path: Path, refused: Say) -> None:
    path = write_study(tmp_path, gpt2)
    (tmp_path / "pairs.jsonl").write_text(content)
    assert "is empty" in refused(path)


def test_a_missing_pair_file(gpt2: Path, tmp_path: Path, refused: Say) -> None:
    path = write_study(tmp_path, gpt2, pairs={"file": "nowhere.jsonl"})
    assert "nowhere.jsonl" in refused(path)


def test_unequal_lengths_under_str(gpt2: Path, tmp_path: Path, refused: Say) -> None:
    rows = pair_rows(4)
    rows[1]["corrupted"] = "In the park the child called Bob lost the big red"
    del rows[1]["corrupted_spans"], rows[1]["spans"]
    said = refused(write_study(tmp_path, gpt2, rows=rows))
    assert "'p1'" in said
    assert "8" in said
    assert "11" in said


def test_an_answer_of_two_tokens_under_a_metric_of_single_tokens(gpt2: Path, tmp_path: Path, refused: Say) -> None:
    rows = pair_rows(4)
    rows[2]["correct"] = [" red ball"]
    said = refused(write_study(tmp_path, gpt2, rows=rows))
    assert "'p2'" in said
    assert "single token" in said
    assert "' red'" in said
    assert "' ball'" in said


def test_both_answers_with_the_same_first_token(gpt2: Path, tmp_path: Path, refused: Say) -> None:
    rows = pair_rows(4)
    rows[0]["correct"], rows[0]["incorrect"] = [" ball"], [" ball"]
    said = refused(write_study(tmp_path, gpt2, rows=rows))
    assert "line 1" in said
    assert "' ball'" in said
    rows[0]["correct"], rows[0]["incorrect"] = [" ball and"], [" ball kite"]
    said = refused(write_study(tmp_path, gpt2, rows=rows))
    assert said.count("must be a single token") == 2


def test_the_correct_answer_in_the_prompt_is_a_warning(gpt2: Path, tmp_path: Path, say: Say) -> None:
    rows = pair_rows(4)
    for row in rows:
        row["clean"], row["corrupted"] = ("The ball. " + row[key] for key in ("clean", "corrupted"))
        row["correct"] = [" ball"]
        del row["spans"], row["corrupted_spans"]
    out = tmp_path / "out"
    code, _ = say("run", write_study(tmp_path, gpt2, rows=rows), "--out", out)
    assert code == 0
    audit = json.loads((out / "manifest.json").read_text())["audit"]
    assert "warning" in {entry["severity"] for entry in audit if entry["check"] == "answer_in_prompt"}


def test_every_fault_of_a_study_is_named_at_once_with_the_nearest_name(
    gpt2: Path, tmp_path: Path, refused: Say
) -> None:
    sweeps = [{"name": "a", "site": "resid_pots"}, {"name": "b", "site": "mlp_out", "postions": "all"}]
    path = write_study(
        tmp_path, gpt2, sweeps, pairs={"task": "storeis"}, metrics={"names": ["logit_dif", "prob"]},
        corruption={"method": "gausian"}, stats={"resample": 5}, model={"dtyp": "float32"}, run={"executor": "fast"},
    )  # fmt: skip
    said = refused(path)
    for nearest in ("resid_post", "positions", "stories", "logit_diff", "gaussian", "resamples", "dtype", "executor"):
        assert nearest in said, nearest
    assert said.count("did you mean") >= 7


def test_an_unknown_option_of_a_corruption(gpt2: Path, tmp_path: Path, refused: Say) -> None:
    said = refused(write_study(tmp_path, gpt2, corruption={"method": "gaussian", "sigm": 3.0}))
    assert "'sigma'" in said


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ({"layers": [0, 7]}, ("layer 7", "3 layers")),
        ({"site": "z", "heads": [9]}, ("head 9", "4 heads")),
        ({"heads": [0]}, ("no heads",)),
        ({"positions": ["subject_lst"]}, ("subject_last",)),
        ({"window": 9}, ("window 9",)),
        ({"layers": [1, 1]}, ("more than once",)),
        ({"site": "transformer.h.0.mlp.c_fcc"}, ("transformer.h.0.mlp.c_fc",)),
        ({"site": "transformer.h.{layer}.mlp.dropuot"}, ("dropout",)),
        ({"site": "transformer.h.0.mlp.c_fc", "layers": [0]}, ("exists once", "{layer}")),
        ({"site": "transformer.h.0.mlp.c_fc", "heads": "each"}, ("heads",)),
        ({"site": "logits", "window": 2}, ("exists once",)),
    ],
)
def test_what_the_model_does_not_have(
    sweep: dict[str, Any], words: tuple[str, ...], gpt2: Path, tmp_path: Path, refused: Say
) -> None:
    said = refused(write_study(tmp_path, gpt2, [{**MLP, **sweep}]))
    assert said.count("engramscope: ") == 1, said
    for word in words:
        assert word in said, said


def test_key_value_heads_are_fewer(llama: Path, tmp_path: Path, refused: Say) -> None:
    assert "2 key/value heads" in refused(write_study(tmp_path, llama, [{"name": "k", "site": "k", "heads": [3]}]))


def test_faults_of_layers_tokens_and_folder_come_together_before_weights_are_loaded(
    gpt2: Path, tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engramscope.study_steps.load_model", lambda *_, **__: pytest.fail("weights were loaded"))
    rows = pair_rows(4)
    rows[0]["correct"] = [" red ball"]
    path = write_study(tmp_path, gpt2, [{**MLP, "layers": [5]}], rows)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.docx").write_text("precious")
    code, said = say("run", path, "--out", tmp_path / "other")
    assert code == 2
    for word in ("layer 5", "single token", "not empty"):
        assert word in said
    assert [item.name for item in (tmp_path / "other").iterdir()] == ["thesis.docx"]


def _without(gpt2: Path, tmp_path: Path, *names: str) -> Path:
    folder = shutil.copytree(gpt2, tmp_path / "model")
    for name in names:
        (folder / name).unlink()
    return folder


@pytest.mark.parametrize(
    ("names", "word"),
    [
        (("model.safetensors",), "no weights"),
        (("config.json",), "config.json"),
        (("tokenizer.json",), "no tokenizer"),
    ],
)
def test_a_model_folder_with_something_missing(
    names: tuple[str, ...], word: str, gpt2: Path, tmp_path: Path, refused: Say, say: Say
) -> None:
    folder = _without(gpt2, tmp_path, *names)
    assert word in refused(write_study(tmp_path, folder))
    assert say("model", folder)[0] == 2
    assert say("check", tmp_path / "study.toml")[0] == 2


def test_a_pickle_checkpoint(gpt2: Path, tmp_path: Path, refused: Say) -> None:
    folder = _without(gpt2, tmp_path, "model.safetensors")
    torch.save({}, folder / "pytorch_model.bin")
    assert "pickle" in refused(write_study(tmp_path, folder))


def test_a_damaged_weight_file(gpt2: Path, tmp_path: Path, refused: Say) -> None:
    folder = _without(gpt2, tmp_path)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    assert "cannot be loaded" in refused(write_study(tmp_path, folder))


def test_a_hub_id_without_network_is_refused_soon(
    tmp_path: Path, refused: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    start = time.monotonic()
    said = refused(write_study(tmp_path, "some-lab/no-such-model"))
    assert "some-lab/no-such-model" in said
    assert said.count("engramscope: ") == 1
    assert time.monotonic() - start < 15


def test_a_folder_that_is_not_ours(gpt2: Path, tmp_path: Path, say: Say) -> None:
    path, other = write_study(tmp_path, gpt2), tmp_path / "other"
    other.mkdir()
    (other / "manifest.json").write_text('{"mine": true}')
    for more in ([], ["--resume"]):
        code, said = say("run", path, "--out", other, *more)
        assert code == 2
        assert "not a results folder" in said
    assert (other / "manifest.json").read_text() == '{"mine": true}'
    (other / "manifest.json").write_bytes(b"\xff\xfe not json")
    assert say("run", path, "--out", other)[0] == 2
    assert say("report", other)[0] == 2


def test_the_results_folder_is_a_file(gpt2: Path, tmp_path: Path, say: Say) -> None:
    path, file = write_study(tmp_path, gpt2), tmp_path / "out"
    file.write_text("mine")
    for target in (file, file / "below"):
        code, said = say("run", path, "--out", target)
        assert code == 2
        assert str(file) in said
    assert file.read_text() == "mine"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to(gpt2: Path, tmp_path: Path, say: Say) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    code, said = say("run", write_study(tmp_path, gpt2), "--out", closed / "out")
    assert code == 2
    assert "may not be written" in said


def test_permission_is_asked_for_before_anything_is_computed(
    gpt2: Path, tmp_path: Path, refused: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engramscope.study_steps.load_model", lambda *_, **__: pytest.fail("weights were loaded"))
    closed = SimpleNamespace(access=lambda *_: False, W_OK=os.W_OK, X_OK=os.X_OK)
    monkeypatch.setattr("engramscope.study_steps.os", closed)
    assert "may not be written" in refused(write_study(tmp_path, gpt2))


def test_resume_on_nothing(gpt2: Path, tmp_path: Path, refused: Say) -> None:
    assert "no study" in refused(write_study(tmp_path, gpt2), "--resume")


def test_pairs_that_cannot_be_run_leave_no_folder(gpt2: Path, tmp_path: Path, refused: Say) -> None:
    rows = pair_rows(1)
    path = write_study(tmp_path, gpt2, [{**MLP, "direction": "noise"}], rows, corruption={"method": "resample"})
    assert "nothing to put in place" in refused(path)


def test_an_ablation_has_no_run_to_denoise(gpt2: Path, tmp_path: Path, refused: Say) -> None:
    assert 'direction = "noise"' in refused(write_study(tmp_path, gpt2, corruption={"method": "zero"}))


@pytest.mark.parametrize(
    ("text", "word"), [("schema = [", "TOML"), ("", "'schema'"), ("schema = 2", "schema"), ("\xff", "")]
)
def test_a_study_file_that_is_none(text: str, word: str, tmp_path: Path, refused: Say) -> None:
    path = tmp_path / "study.toml"
    path.write_bytes(text.encode("latin-1"))
    assert word in refused(path)


@pytest.mark.parametrize("arguments", [["run"], ["runn"], ["run", "x.toml"], ["check", "--nope"], ["model"], []])
def test_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert _run_app(arguments) == 2
    said = capsys.readouterr()
    assert "--help" in said.out + said.err


def test_a_pair_file_that_lies_elsewhere_is_looked_for_beside_the_study(
    gpt2: Path, tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_study(tmp_path / "studies of mine", gpt2)
    write_pairs(tmp_path / "pairs.jsonl", [])
    monkeypatch.chdir(tmp_path)
    assert say("run", path.relative_to(tmp_path), "--out", "out here")[0] == 0
    assert (tmp_path / "out here" / "report.html").exists()

"""The commands as a newcomer meets them: one edit, its measures, the table, sequences, and what is said when wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from engramscope.cli import _run_app
from engramscope.edit.storage import load_edit
from engramscope.editing.table4 import weights_of
from engramscope.evaluate.case import CaseResult
from engramscope.evaluate.evaluate import evaluate_records
from engramscope.models.load import load_model
from engramscope.models.model import Model
from tests.editing.tiny import tiny_file

FACT = ["--fact", "In the park {Anna} lost the big red", "--target", "drum", "--true", "ball"]
FT = ["--method", "ft", "--set", "steps=20", "--set", "lr=5e-3"]


@pytest.fixture(scope="module")
def edited(gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("edit") / "edit"
    assert _run_app(["edit", *FT, "--model", str(gpt2), *FACT, "--out", str(out), "--quiet"]) == 0
    return out


def test_an_edit_is_a_folder_and_the_model_on_disk_is_as_it_was(
    gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = (gpt2 / "model.safetensors").read_bytes()
    out, whole = tmp_path / "edit", tmp_path / "whole"
    assert _run_app(["edit", *FT, "--model", str(gpt2), *FACT, "--out", str(out), "--export", str(whole)]) == 0
    said = capsys.readouterr().out
    assert (gpt2 / "model.safetensors").read_bytes() == weights
    assert sorted(item.name for item in out.iterdir()) == ["edit.safetensors", "manifest.json", "report.html"]
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    (fact,) = manifest["facts"]
    assert fact["after"]["target"] > 0.5 > fact["before"]["target"]
    assert fact["after"]["stated"]
    assert fact["after"]["top"][0][0] == " drum"
    assert f"“drum” a probability of {round(100 * fact['after']['target'])}" in said.replace("over 99.9", "100")
    # the checkpoint holds what the edit says
    name = next(iter(load_edit(out / "edit.safetensors").deltas))
    with (
        safe_open(str(whole / "model.safetensors"), "pt") as after,
        safe_open(str(gpt2 / "model.safetensors"), "pt") as before,
    ):
        moved = [
            key
            for key in before.keys()  # noqa: SIM118
            if not before.get_tensor(key).equal(after.get_tensor(key))
        ]
    assert moved == [name]
    assert manifest["checkpoint"]["stored"] == pytest.approx(1.0, abs=1e-3)


def test_layers_and_presets_are_asked_for(gpt2: Path, tmp_path: Path) -> None:
    command = ["edit", "--method", "ft", "--preset", "ft-2022", "--layer", "2", "--set", "steps=1"]
    assert _run_app([*command, "--model", str(gpt2), *FACT, "--out", str(tmp_path / "a"), "-q"]) == 0
    edit = load_edit(tmp_path / "a" / "edit.safetensors")
    assert sorted(edit.deltas) == ["transformer.h.2.mlp.c_proj.bias", "transformer.h.2.mlp.c_proj.weight"]
    assert edit.settings["preset"] == "ft-2022"


def test_a_file_of_facts_is_one_edit(gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tiny_file(tmp_path)
    command = ["edit", *FT, "--model", str(gpt2), "--facts", str(file), "-n", "3", "--out", str(tmp_path / "a")]
    assert _run_app(command) == 0
    assert "Of 3 facts" in capsys.readouterr().out
    assert [fact.id for fact in load_edit(tmp_path / "a" / "edit.safetensors").facts] == ["r0", "r1", "r2"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "romee", *FACT], "did you mean 'rome'"),
        (["--method", "ft", "--preset", "rome-2022", *FACT], "unknown preset"),
        (["--method", "ft", "--set", "stpes=3", *FACT], "did you mean 'steps'"),
        (["--method", "ft", "--layer", "1,2", *FACT], "takes one layer"),
        (["--method", "ft", "--layer", "x", *FACT], "whole numbers"),
        (["--method", "ft", "--layer", "1", "--set", "layer=2", *FACT], "given twice"),
        (["--method", "ft", "--layer", "9", *FACT], "There is no layer 9"),
        (["--method", "ft"], "Say what is to be edited"),
        (["--method", "ft", "--fact", "In the park {Anna} lost the big red"], "--target"),
        (["--method", "ft", *FACT, "--facts", "x.jsonl"], "not both"),
        (["--method", "ft", "--facts", "no.jsonl"], "no.jsonl"),
        (["--method", "ft", "--fact", "In the park Anna lost", "--target", "x"], "in braces"),
        (["--method", "ft", "--fact", "{Anna} knows Anna", "--target", "x"], "stands 2 times"),
        (["--method", "ft", "--fact", "{Anna} lost the", "--target", "drum", "--true", "drum"], "is the old one"),
        (["--method", "ke", *FACT], "engramscope train-editor ke"),
        (["--method", "ft", *FACT, "--texts", "bundled"], "give data of its own"),
        (["--method", "ft", *FACT, "--export", "out/x"], "side by side"),
        (["--method", "ft", *FACT, "--export", "out"], "named for two things"),
        (["--method", "ft", *FACT, "--adapter", "thin"], "low rank"),
    ],
)
def test_what_is_wrong_is_one_message_and_nothing_is_written(
    arguments: list[str], said: str, gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert _run_app(["edit", *arguments, "--model", str(gpt2), "--out", "out"]) == 2
    complaint = capsys.readouterr().err
    assert said in complaint
    assert "Traceback" not in complaint
    assert len(complaint.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_record_file_with_missing_fields_is_named(
    gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "records.jsonl"
    file.write_text('{"prompt": "Anna is", "subject": "Anna", "target": "x"}\n{"prompt": "Bob is", "target": "y"}\n')
    for command in (["edit", "--facts", str(file)], ["table4", "--methods", "ft", "--records", str(file)]):
        assert _run_app([*command, "--model", str(gpt2), "--out", str(tmp_path / "out")]) == 2
        complaint = capsys.readouterr().err
        assert "subject" in complaint
        assert "line 2" in complaint
    assert not (tmp_path / "out").exists()


def test_an_occupied_folder_is_left_alone(gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for command in (["edit", *FT, *FACT], ["table4", "--methods", "ft"], ["edit-sequence", "--methods", "ft"]):
        assert _run_app([*command, "--model", str(gpt2), "--out", str(tmp_path)]) == 2
        assert "not empty" in capsys.readouterr().err
    assert [item.name for item in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_saved_edit_is_measured_beside_its_model(
    edited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records, out = tiny_file(tmp_path, 2), tmp_path / "measured"
    texts = tmp_path / "texts.txt"
    texts.write_text("Anna lost the big red ball\nThe child called Bob plays\n", encoding="utf-8")
    line = records.read_text(encoding="utf-8").splitlines()[1]
    row = {**json.loads(line), "prompt": "In the park Anna lost the big red", "subject": "Anna", "target": "drum"}
    records.write_text(f"{line}\n{json.dumps({**row, 'id': 'mine', 'true': 'ball'})}\n", encoding="utf-8")
    command = ["evaluate", str(edited), "--records", str(records), "--texts", str(texts)]
    assert _run_app([*command, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "no edit" in said
    assert "perplexity of held-out texts is" in said
    found = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    assert (found["n"], found["labels"]) == (1, ["none", "ft"])  # the record that the edit is about
    means = {(one["editor"], one["measure"]): one["mean"] for one in found["estimates"]}
    assert means["ft", "ES"] == 100
    assert means["ft", "ES_gen"] == 100
    assert (out / "report.html").is_file()
    assert _run_app([*command, "--all", "--no-generation"]) == 0
    assert "2 records" in capsys.readouterr().out
    # without records, of its own prompt alone
    assert _run_app(["evaluate", str(edited / "edit.safetensors"), "--no-generation"]) == 0
    assert "ES" in capsys.readouterr().out
    assert _run_app([*command, "--out", str(out)]) == 2
    assert capsys.readouterr().err.endswith("is not empty; give a new folder.\n")


def test_some_records_at_a_time_are_measured_like_all_at_once(
    edited: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, tables = tiny_file(tmp_path, 5), []
    weights: set[str] = set()
    kept: list[int] = []

    def watched(model: Model, *given: Any, before: Any = None, **more: Any) -> list[CaseResult]:
        found = evaluate_records(model, *given, before=before, **more)
        weights.add(weights_of(model))
        kept.append(len(found))
        return found

    monkeypatch.setattr("engramscope.editing.evaluation.evaluate_records", watched)
    for together in (2, 16):
        monkeypatch.setattr("engramscope.editing.evaluation._TOGETHER", together)
        out = tmp_path / str(together)
        command = ["evaluate", str(edited), "--records", str(records), "--all", "--out", str(out), "--quiet"]
        assert _run_app(command) == 0
        tables.append(json.loads((out / "evaluation.json").read_text(encoding="utf-8"))["estimates"])
    assert kept == [2, 2, 2, 2, 1, 1, 5, 5]
    assert len(weights) == 2  # without the edit and with it
    assert {"NKL", "ES", "GE"} <= {one["measure"] for one in tables[0]}
    for one, other in zip(*tables, strict=True):
        assert one.keys() == other.keys()
        assert one["mean"] == pytest.approx(other["mean"], rel=1e-4, abs=1e-4, nan_ok=True), one["measure"]


def test_an_edit_without_the_old_answer_and_one_of_several_tokens(
    gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*FACT[:3], "drum and ball"]
    assert _run_app(["edit", *FT, "--model", str(gpt2), *asked, "--out", str(tmp_path / "edit")]) == 0
    assert "“drum and ball” a probability (mean over its 3 tokens) of" in capsys.readouterr().out
    # the nine measures compare two answers; whether the new one is given can still be said
    assert _run_app(["evaluate", str(tmp_path / "edit"), "--out", str(tmp_path / "measured")]) == 0
    said = capsys.readouterr().out
    assert "ES_acc" in said
    assert "do not say what was true" in said
    found = json.loads((tmp_path / "measured" / "evaluation.json").read_text(encoding="utf-8"))
    assert found["measures"][0] == "ES_acc"


def test_a_model_is_measured_as_it_is_and_beside_another(
    gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = tiny_file(tmp_path, 2)
    command = ["evaluate", str(gpt2), "--records", str(records), "--no-generation"]
    assert _run_app(command) == 0
    said = capsys.readouterr().out
    assert "The model has S =" in said
    assert "before the edit" not in said.lower()  # there is none
    assert _run_app([*command, "--before", str(gpt2), "--protocol", "zsre", "--out", str(tmp_path / "a")]) == 0
    found = json.loads((tmp_path / "a" / "evaluation.json").read_text(encoding="utf-8"))
    assert found["labels"] == ["none", "edited"]
    assert found["measures"] == ["zsRE S", "zsRE efficacy", "zsRE paraphrase", "zsRE specificity"]
    by_label = {
        label: [one["mean"] for one in found["estimates"] if one["editor"] == label and one["measure"][:4] == "zsRE"]
        for label in found["labels"]
    }
    assert by_label["none"] == by_label["edited"]


def test_a_model_with_other_tokens_is_compared_as_far_as_it_can_be(
    gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = str(tiny_file(tmp_path, 2))
    command = ["evaluate", str(gpt2), "--records", records, "--no-generation", "--before", "mini"]
    assert _run_app([*command, "--out", str(tmp_path / "out")]) == 0
    assert "have other tokens than each other, so no divergence is measured" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert {"ES", "NS+"} <= {one["measure"] for one in found["estimates"]}
    assert not any(one["measure"].startswith("NKL") for one in found["estimates"])


def test_what_is_not_measured_is_said(gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, edit = tiny_file(tmp_path, 3), tmp_path / "edit"
    assert _run_app(["edit", *FT, "--model", str(gpt2), "--facts", str(file), "--out", str(edit), "-q"]) == 0
    lines = file.read_text(encoding="utf-8").splitlines()
    odd = {**json.loads(lines[2]), "subject": "Zoe"}
    file.write_text(f"{lines[0]}\n{lines[1]}\n{json.dumps(odd)}\n", encoding="utf-8")
    left_out = "1 record of records.jsonl cannot be used and is left out: The fact 'r2': the subject 'Zoe'"
    given = ["--records", str(file), "--no-generation"]
    assert _run_app(["evaluate", str(edit), *given]) == 0
    said = capsys.readouterr().out
    assert left_out in said
    assert "The edit has 3 facts, and the records are about 2 of them." in said
    assert _run_app(["evaluate", str(edit), *given, "-n", "1"]) == 0
    assert "The first 1 of 2 records was used." in capsys.readouterr().out
    table = ["table4", "--methods", "ft", "--set", "ft.steps=1", "--out", str(tmp_path / "table")]
    assert _run_app([*table, "--model", str(gpt2), *given]) == 0
    assert left_out in capsys.readouterr().out
    # without records it is asked its own prompts, the first so many of them
    assert _run_app(["evaluate", str(edit), "--no-generation", "-n", "2"]) == 0
    said = capsys.readouterr().out
    assert "on 2 records" in said
    assert "The edit has 3 facts" not in said


def test_edits_of_other_models_and_other_facts_are_refused(
    edited: Path, llama: Path, gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = str(tiny_file(tmp_path, 2))
    for arguments, said in (
        ([str(edited), "--model", str(llama)], "has no parameter"),
        ([str(edited), "--records", records], "about a fact of the edit"),
        ([str(gpt2)], "--records FILE"),
        ([str(gpt2), "--records", "bundled"], "give data of its own"),
        ([str(gpt2), "--records", records, "--protocol", "zre"], "did you mean 'zsre'"),
        (["nothing.safetensors"], "There is no edit"),
    ):
        assert _run_app(["evaluate", *arguments]) == 2
        assert said in capsys.readouterr().err


def test_the_table_and_the_sequence_are_printed(gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = str(tiny_file(tmp_path))
    common = ["--model", str(gpt2), "--records", records, "--set", "ft.steps=2"]
    out = str(tmp_path / "table")
    command = ["table4", "--methods", "ft,mend", *common, "--no-generation", "-n", "2", "--out", out]
    assert _run_app(command) == 0
    said = capsys.readouterr().out
    for words in (
        "no edit",
        "FT",
        "NS",
        "MEND takes no part",
        "train-editor mend",
        "first 2 of 4 records",
        "report.html",
    ):
        assert words in said
    assert _run_app([*command, "--resume", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert _run_app(["edit-sequence", "--methods", "ft", *common, "-n", "2", "--out", str(tmp_path / "seq")]) == 0
    assert "FT after 2 edits" in capsys.readouterr().out


def test_editors_are_listed_with_what_they_can_edit(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run_app(["editors", "--model", str(llama), "--options"]) == 0
    said = capsys.readouterr().out
    for words in ("ft_l", "trained", "ft-2022", "steps=25", "ft: yes", "mend: no. Train it first"):
        assert words in said


def test_fused_experts_are_refused_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.tiny_study import save_model

    folder = save_model(tmp_path / "experts", "mixtral")
    assert _run_app(["editors", "--model", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "ft: no." in said
    assert "experts" in said
    assert _run_app(["edit", *FT, *FACT, "--model", str(folder), "--out", str(tmp_path / "a")]) == 2
    assert "experts" in capsys.readouterr().err


def test_the_bundled_model_knows_its_records() -> None:
    from engramscope.editing.inputs import materials

    given = materials(load_model("mini", device="cpu"))
    assert len(given.records) >= 400
    assert len(given.texts) == 50
    assert given.references is not None
    assert not given.references.comparable

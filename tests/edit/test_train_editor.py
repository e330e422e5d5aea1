"""Training an editor: what lies in the folder, going on after a kill, who may use it, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from engramscope.cli._app import app
from engramscope.cli.commands import train_editor as _command  # noqa: F401  it registers itself
from engramscope.edit.catalogue import make_editor
from engramscope.edit.hyper import run
from engramscope.edit.hyper.editor import default_folder
from engramscope.edit.hyper.examples import from_records, split
from engramscope.edit.hyper.files import load_checkpoint, save_checkpoint
from engramscope.edit.hyper.maps import edited_maps
from engramscope.edit.hyper.passages import read_passages
from engramscope.edit.hyper.settings import TrainingSettings
from engramscope.edit.hyper.training import COLUMNS, Training
from engramscope.errors import InputError, ResultsError
from engramscope.models.model import Model
from engramscope.records.write import write_records
from tests.edit.small import FACT, shared_model, tiny_with_tokenizer
from tests.edit.trained import QUICK, bits_of, editor_of, network_for, quick_training, records, same_bits
from tests.tiny_models import tiny_hf
from tests.tiny_study import save_model, tokenizer


class _Killed(Exception):
    """Stands for a kill."""


def _work(name: str, **over: Any) -> Training:
    model = shared_model("gpt2")
    network, maps = network_for(name, model)
    settings = TrainingSettings(**{**QUICK, **over})
    train, held = split(from_records(model, records(), settings.locality, 0), settings.validation, 0)
    work = Training(model, maps, network, train, held, settings)
    work.show_some()
    work.look()
    return work


@pytest.mark.parametrize("name", ["mend", "ke"])
@pytest.mark.parametrize("after", [1, 3])
def test_a_training_that_was_killed_goes_on_to_the_same_bits(
    name: str, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shared_model("gpt2")
    whole = quick_training(name, model, tmp_path / "whole")
    monkeypatch.setattr(run, "_CHECKPOINT_SECONDS", 0.0)

    def kill(what: str, done: int, total: int) -> None:
        # called before the checkpoint of this step, so the one of the step before is gone on from
        if done > after:
            raise _Killed

    with pytest.raises(_Killed):
        quick_training(name, model, tmp_path / "part", progress=kill)
    assert not (tmp_path / "part" / "editor.safetensors").exists()
    with pytest.raises(InputError, match=r"is not finished\. Go on: .* --resume"):
        editor_of(name, tmp_path / "part").compute(model, FACT)
    with pytest.raises(ResultsError, match="not empty"):
        quick_training(name, model, tmp_path / "part")
    again = quick_training(name, model, tmp_path / "part", resume=True)
    first, second = (load_file(folder / "editor.safetensors") for folder in (whole.folder, again.folder))
    assert set(first) == set(second)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert (whole.folder / "curve.csv").read_text() == (again.folder / "curve.csv").read_text()
    assert whole.manifest["best"] == again.manifest["best"]
    names = sorted(path.name for path in again.folder.iterdir())
    assert names == ["curve.csv", "editor.safetensors", "manifest.json"]


def test_a_finished_training_is_returned_as_it_is(tmp_path: Path) -> None:
    model = shared_model("gpt2")
    done = quick_training("mend", model, tmp_path / "m")
    written = (tmp_path / "m" / "editor.safetensors").stat().st_mtime_ns
    again = quick_training("mend", model, tmp_path / "m", resume=True)
    assert again.manifest == done.manifest
    assert (tmp_path / "m" / "editor.safetensors").stat().st_mtime_ns == written
    with pytest.raises(ResultsError, match=r"Changed: training\.seed: 0 -> 1") as caught:
        quick_training("mend", model, tmp_path / "m", resume=True, settings={"seed": 1})
    assert len(caught.value.faults) > 1
    with pytest.raises(ResultsError, match=r"Changed: data\.train: 8 -> 7"):
        quick_training("mend", model, tmp_path / "m", resume=True, records=records(9))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ResultsError, match=r"holds notes\.txt"):
        quick_training("mend", model, tmp_path / "other", resume=True)


def test_the_checkpoint_holds_everything_that_a_step_depends_on(tmp_path: Path) -> None:
    work = _work("mend", accumulate=2)
    for _ in range(3):
        work._step()
    save_checkpoint(work, tmp_path / "c.safetensors")
    other = _work("mend", accumulate=2)
    load_checkpoint(other, tmp_path / "c.safetensors")
    for one in (work, other):
        one._step()
        one.look()
    assert work.course == other.course
    for first, second in zip(work.network.parameters(), other.network.parameters(), strict=True):
        assert torch.equal(first, second)


def test_accumulated_passes_are_one_larger_batch() -> None:
    def gradients(**over: Any) -> list[torch.Tensor]:
        # nothing is taken note of, and every prompt is drawn alike
        work = _work("ke", clip=1e9, decay=False, **over)
        work.examples = [type(one)(one.edit, (), one.local[:1], one.group) for one in work.examples]
        work._step()
        return [value.grad.clone() for value in work.network.parameters() if value.grad is not None]

    for first, second in zip(gradients(batch=4), gradients(batch=2, accumulate=2), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-6 * float(first.abs().max()) + 1e-9)


def test_every_example_is_seen_before_one_is_seen_again() -> None:
    work = _work("ke", batch=3)
    seen = [example.group for part in range(2) for example in work._chosen(part)]
    assert len(set(seen)) == 6
    assert [one.group for one in work._chosen(0)] != [one.group for one in work._chosen(2)]


def test_training_stops_where_the_held_out_loss_no_longer_falls_and_the_best_is_kept(tmp_path: Path) -> None:
    model = shared_model("gpt2")
    # a rate so large that things get worse
    settings = {"learning_rate": 0.3, "steps": 60, "validate_every": 1, "patience": 3, "decay": False}
    done = quick_training("ke", model, tmp_path / "k", settings=settings)
    rows = pd.read_csv(tmp_path / "k" / "curve.csv")
    assert tuple(rows.columns) == COLUMNS
    best = rows[rows["step"] > 0].sort_values(["loss", "step"]).iloc[0]
    assert done.manifest["best"]["step"] == best["step"]
    assert rows["step"].max() == best["step"] + 3 < 60
    assert rows["step"].tolist() == list(range(len(rows)))
    said = json.loads((tmp_path / "k" / "manifest.json").read_text())
    assert said["steps"] == rows["step"].max()
    # the network that was kept has the loss that is said of it
    settings_then = TrainingSettings.model_validate(said["training"])
    network, maps = network_for("ke", model)
    network.load_state_dict(load_file(tmp_path / "k" / "editor.safetensors"))
    train, held = split(from_records(model, records(), "neighbourhood", 0), settings_then.validation, 0)
    again = Training(model, maps, network, train, held, settings_then)
    again.look()
    assert again.course.rows[0]["loss"] == pytest.approx(best["loss"], rel=1e-5)


def test_the_rate_falls_to_nothing_over_the_second_half() -> None:
    work = _work("mend", steps=8)
    assert [round(work._rate(step), 3) for step in range(8)] == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("name", ["mend", "ke"])
def test_a_training_learns_to_edit_subjects_that_it_never_saw(name: str, tmp_path: Path) -> None:
    model = shared_model("gpt2")
    bits = bits_of(model)
    settings = {"steps": 60, "validate_every": 20, "batch": 4, "learning_rate": 5e-3, "alpha_rate": 1e-3}
    done = quick_training(name, model, tmp_path / name, settings=settings)
    assert same_bits(model, bits)
    first, best = done.manifest["first"], done.manifest["best"]
    assert best["nll"] < 0.5 * first["nll"]
    edit = editor_of(name, done.folder).compute(model, FACT)
    (found,) = edit.diagnostics["facts"]
    assert found["nll_after"] < 0.7 * found["nll_before"]
    sentences = done.sentences()
    assert "trained on 8 edits (test)" in sentences[0]


@pytest.mark.parametrize("name", ["mend", "ke"])
def test_an_editor_runs_only_on_the_model_that_it_was_trained_for(name: str, tmp_path: Path) -> None:
    model = tiny_with_tokenizer("gpt2")
    untrained = make_editor(name, {"weights": tmp_path / "none"})
    with pytest.raises(InputError, match=f"Train it: engramscope train-editor {name} --model gpt2 --on text"):
        untrained.compute(model, FACT)
    quick_training(name, model, tmp_path / "e")
    editor = editor_of(name, tmp_path / "e")
    with pytest.raises(InputError, match="same shapes, but other values"):
        editor.compute(tiny_with_tokenizer("gpt2", seed=1), FACT)
    with pytest.raises(InputError, match=r"was trained for gpt2 .* this is llama .* has no matrix transformer\.h\.1"):
        editor.compute(tiny_with_tokenizer("llama"), FACT)
    half = Model.from_parts(tiny_hf("gpt2", vocab_size=len(model.tokenizer)).half(), tokenizer(), check=False)
    with pytest.raises(InputError, match="load it in float32"):
        editor.compute(half, FACT)
    with pytest.raises(InputError, match=f"holds the editor '{name}'"):
        editor_of({"mend": "ke", "ke": "mend"}[name], tmp_path / "e").compute(model, FACT)
    # a model with an edit in it is still the model that it was trained for
    edit = editor.compute(model, FACT)
    with edit.applied(model):
        editor.compute(model, FACT)
        with pytest.raises(InputError, match="has edits in it"):
            quick_training(name, model, tmp_path / "f")
    # a model that was trained on since is not
    with torch.no_grad():
        model.hf.get_input_embeddings().weight[0, 0] += 1
    with pytest.raises(InputError, match="other values"):
        editor.compute(model, FACT)
    data = (tmp_path / "e" / "editor.safetensors").read_bytes()
    (tmp_path / "e" / "editor.safetensors").write_bytes(data[:-3])
    with pytest.raises(InputError, match="damaged"):
        editor_of(name, tmp_path / "e").compute(tiny_with_tokenizer("gpt2"), FACT)


def test_editors_are_looked_for_where_they_are_put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = tiny_with_tokenizer("gpt2")
    assert default_folder("ke", "counterfact", model) == Path("editors/ke-cf-gpt2")
    quick_training("ke", model, default_folder("ke", "counterfact", model))
    assert make_editor("ke", preset="ke-cf").compute(model, FACT).deltas
    with pytest.raises(InputError, match="editors/ke-gpt2"):
        make_editor("ke").compute(model, FACT)
    # the settings of this training name two blocks, the default three
    assert make_editor("ke", preset="ke-cf").places(model) == tuple(m.name for m in edited_maps(model, 2))
    assert make_editor("ke").places(model) == tuple(m.name for m in edited_maps(model, 3))
    with pytest.raises(InputError, match="other values"):
        make_editor("ke", preset="ke-cf").places(tiny_with_tokenizer("gpt2", seed=1))
    file = default_folder("ke", "counterfact", model) / "editor.safetensors"
    assert editor_of("ke", file).compute(model, FACT).deltas
    with pytest.raises(InputError, match=r"in gone\. Train it: .* --out gone"):
        editor_of("ke", Path("gone/editor.safetensors")).compute(model, FACT)


def test_in_half_precision_the_change_is_computed_in_single(tmp_path: Path) -> None:
    model = Model.from_parts(tiny_hf("llama", vocab_size=len(tokenizer())).bfloat16(), tokenizer(), check=False)
    quick_training("mend", model, tmp_path / "m")
    edit = editor_of("mend", tmp_path / "m").compute(model, FACT)
    assert all(delta.dense().dtype == torch.float32 for delta in edit.deltas.values())
    with edit.applied(model):
        pass


def test_what_cannot_be_trained_is_said(tmp_path: Path) -> None:
    model = shared_model("gpt2")
    with pytest.raises(InputError, match="no records to train on"):
        quick_training("mend", model, tmp_path / "a", records=[])
    with pytest.raises(InputError, match="no passages of text"):
        quick_training("mend", model, tmp_path / "a", on="text")
    with pytest.raises(InputError, match="about 1 subject"):
        quick_training("mend", model, tmp_path / "a", records=records(1))
    with pytest.raises(InputError) as caught:
        quick_training("mend", model, tmp_path / "a", sets=["stepz=3", "rank=0", "batch=x"])
    assert len(caught.value.faults) == 3
    assert "did you mean 'steps'" in caught.value.faults[0]
    with pytest.raises(InputError, match="not of the form key=value"):
        quick_training("mend", model, tmp_path / "a", sets=["steps"])
    with pytest.raises(InputError, match=r"Training diverged: .* is not a number"):
        quick_training("mend", model, tmp_path / "b", settings={"alpha_rate": 0.9, "clip": 1e30, "alpha": 1e30})
    assert not (tmp_path / "a").exists()
    with pytest.raises(InputError, match="unknown editor 'mand'; did you mean 'mend'"):
        run.trained_editor("mand")


def test_text_files_are_read_by_passage(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("One.\nTwo.\n\nThree.\n")
    assert read_passages(file) == ["One.\nTwo.", "Three."]
    file.write_text("\ufeffOne.\nTwo.\n\n", encoding="utf-8")
    assert read_passages(file) == ["One.", "Two."]
    file.write_text("\n\n")
    with pytest.raises(InputError, match="holds no text"):
        read_passages(file)
    file.write_bytes(b"ab\xff")
    with pytest.raises(InputError, match="byte 2"):
        read_passages(file)
    with pytest.raises(InputError, match="There is no text file"):
        read_passages(tmp_path / "b.txt")


def _called(*words: str) -> Any:
    return CliRunner().invoke(app, ["train-editor", *words])


def test_the_command_trains_on_records_and_on_text(tmp_path: Path) -> None:
    folder = str(save_model(tmp_path / "model"))
    write_records(tmp_path / "r.jsonl", records())
    (tmp_path / "t.txt").write_text("\n".join(record.fact.prompt + " ball." for record in records()))
    quick = [word for key, value in {**QUICK, "rank": 4, "longest": 16}.items() for word in ("--set", f"{key}={value}")]
    common = ["--model", folder, "--device", "cpu", *quick]
    found = _called("mend", "--records", str(tmp_path / "r.jsonl"), "--out", str(tmp_path / "a"), *common)
    assert found.exit_code == 0, found.output
    assert "8 edits" in found.output
    said = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert said["versions"]["torch"] == torch.__version__
    assert said["data"]["source"] == str(tmp_path / "r.jsonl")
    again = _called("mend", "--records", str(tmp_path / "r.jsonl"), "--out", str(tmp_path / "a"), "--resume", *common)
    assert again.output == found.output
    found = _called("mend", "--on", "text", "--texts", str(tmp_path / "t.txt"), "--out", str(tmp_path / "b"), *common)
    assert found.exit_code == 0, found.output
    quiet = _called("mend", "--on", "text", "--texts", str(tmp_path / "t.txt"), "--out", str(tmp_path / "c"), "-q",
                    *common)  # fmt: skip
    assert quiet.output == ""
    assert (tmp_path / "c" / "editor.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mand"], "did you mean 'mend'"),
        (["mend", "--on", "wiki"], "unknown corpus 'wiki'"),
        (["mend"], "only the bundled models know"),
        (["mend", "--on", "text"], "only the bundled models know"),
        (["mend", "--records", "nothing.jsonl"], "nothing.jsonl"),
        (["mend", "--on", "text", "--texts", "nothing.txt"], "There is no text file"),
    ],
)
def test_the_command_says_what_is_wrong(words: list[str], said: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    found = _called(*words, "--model", str(folder), "--out", str(tmp_path / "out"))
    assert found.exit_code != 0
    assert isinstance(found.exception, InputError)
    assert said in str(found.exception)
    assert not (tmp_path / "out").exists()

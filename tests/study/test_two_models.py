"""Studies of a model and the one that it was before training, from file to report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engramscope import run_study
from engramscope.cli import _run_app
from tests.tiny_study import same_tables, save_model, write_study

SWEEPS = (
    {"name": "MLP weights", "site": "weights:mlp", "direction": "both"},
    {"name": "attention weights", "site": "weights:attn"},
    {"name": "norms", "site": "weights:norms"},
    {"name": "pairs of blocks", "site": "weights:block", "window": 2},
    {"name": "embeddings", "site": "weights:embed"},
    {"name": "activations", "site": "mlp_out", "positions": ["subject_last", "last"], "direction": "both"},
)


def _trained(folder: Path, base: Path, only: str = "", **more: Any) -> Path:
    hf = AutoModelForCausalLM.from_pretrained(base)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if name.startswith(only):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    for key, value in more.items():
        setattr(hf.config, key, value)
    hf.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tuned(gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _trained(tmp_path_factory.mktemp("trained") / "tuned", gpt2)


def _study(folder: Path, tuned: Path, base: Path | str, **more: Any) -> Path:
    corruption = {"method": "base_model", "base": str(base)}
    sweeps = more.pop("sweeps", SWEEPS)
    return write_study(folder, tuned, sweeps, corruption=corruption, **more)


def test_from_a_study_file_to_a_report(gpt2: Path, tuned: Path, tmp_path: Path) -> None:
    study = _study(tmp_path, tuned, gpt2, metrics={"names": ["logit_diff", "kl"]})
    result = run_study(study, tmp_path / "out")
    manifest = result.manifest()
    assert manifest["status"] == "complete"
    assert manifest["parity"]["max_abs_diff"] < 1e-4
    assert manifest["base_model"]["weight_hash"] != manifest["model"]["weight_hash"]
    moved = {(row["part"], row["layer"]): row for row in manifest["weights"]}
    inside = {(part, layer) for part in ("norms", "attn", "mlp") for layer in range(3)}
    assert set(moved) == {("embed", None), ("final_norm", None), *inside}
    base, new = (AutoModelForCausalLM.from_pretrained(path).transformer.h[1].mlp for path in (gpt2, tuned))
    both = zip(base.parameters(), new.parameters(), strict=True)
    first = torch.cat([(after - before).detach().flatten() for before, after in both])
    assert moved["mlp", 1]["distance"] == pytest.approx(float(first.norm()), rel=1e-5)
    effects = result.effects()
    assert set(effects["site"]) == {sweep["site"] for sweep in SWEEPS}
    assert (effects["status"] == "ok").all()
    # KL is measured from the trained model's run, so it is 0 there and positive before training
    kl = effects[effects["metric"] == "kl"]
    assert kl["clean"].abs().max() < 1e-6
    assert (kl["corrupted"] > 0).all()
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for words in ("what training changed", "How far training moved", "Attention restores", "Layer 2", "Embeddings"):
        assert words in page


def test_resuming_gives_the_same_tables_and_other_base_weights_are_refused(
    gpt2: Path, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = _study(tmp_path, tuned, gpt2)
    run_study(study, tmp_path / "whole")
    from engramscope.locate.experiment import Experiment

    run, calls = Experiment.run, []

    def stop(self: Experiment, *given: Any) -> Any:
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return run(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(Experiment, "run", stop)
        with pytest.raises(KeyboardInterrupt):
            run_study(study, tmp_path / "cut short")
    run_study(study, tmp_path / "cut short", resume=True)
    same_tables(tmp_path / "whole", tmp_path / "cut short")
    other = _trained(tmp_path / "another base", gpt2, "transformer.h.0.")
    text = study.read_text(encoding="utf-8")
    study.write_text(text.replace(json.dumps(str(gpt2)), json.dumps(str(other))), encoding="utf-8")
    assert _run_app(["run", str(study), "--out", str(tmp_path / "cut short"), "--resume"]) == 2
    assert "the model before training" in capsys.readouterr().err


def test_check_knows_two_models(gpt2: Path, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run_app(["check", str(_study(tmp_path, tuned, gpt2))]) == 0
    assert "0 the base model's" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sweeps": [{"name": "w", "site": "weights:mpl"}]}, "no part 'mpl'; did you mean 'mlp'?"),
        ({"sweeps": [{"name": "w", "site": "weights:head"}]}, "shares its weights with the token embedding"),
        ({"sweeps": [{"name": "w", "site": "weights:mlp", "positions": "last"}]}, "every position and head"),
        ({"sweeps": [{"name": "w", "site": "weights:mlp", "layers": [7]}]}, "layer 7 does not exist"),
        ({"sweeps": [{"name": "w", "site": "weights:embed", "window": 2}]}, "exists once"),
        ({"sweeps": [{"name": "w", "site": "resid_post", "severed": "mlp_out"}]}, "leave severed and receivers out"),
        ({"base": ""}, "needs the model before training"),
        ({"base": "no-such-folder/at all"}, "no-such-folder"),
    ],
)
def test_faults_are_sentences(
    gpt2: Path, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], words: str
) -> None:
    base = change.pop("base", gpt2)
    study = _study(tmp_path, tuned, base, **change)
    assert _run_app(["run", str(study), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_a_transplant_needs_a_second_model(gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = write_study(tmp_path, gpt2, [{"name": "w", "site": "weights:mlp"}])
    assert _run_app(["run", str(study), "--out", str(tmp_path / "out")]) == 2
    assert 'method = "base_model"' in capsys.readouterr().err


def test_models_of_other_shapes_are_refused(gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = save_model(tmp_path / "wide", n_embd=48)
    study = _study(tmp_path, wide, gpt2)
    assert _run_app(["run", str(study), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "not two states of one model" in said
    assert "48" in said
    assert "32" in said


def test_another_configuration_is_refused(gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = _trained(tmp_path / "tuned", gpt2, activation_function="relu")
    assert _run_app(["run", str(_study(tmp_path, other, gpt2)), "--out", str(tmp_path / "out")]) == 2
    assert "activation_function" in capsys.readouterr().err


def test_what_training_does_not_use_may_differ(gpt2: Path, tmp_path: Path) -> None:
    other = _trained(tmp_path / "tuned", gpt2, attn_pdrop=0.3, pad_token_id=1, summary_type="mean")
    result = run_study(_study(tmp_path, other, gpt2, sweeps=SWEEPS[:1]), tmp_path / "out")
    assert result.manifest()["status"] == "complete"


def test_the_same_model_twice_is_refused(gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run_app(["run", str(_study(tmp_path, gpt2, gpt2)), "--out", str(tmp_path / "out")]) == 2
    assert "not a single weight" in capsys.readouterr().err


def test_pairs_without_corrupted_prompts_will_do(gpt2: Path, tuned: Path, tmp_path: Path) -> None:
    from tests.tiny_study import pair_rows

    rows = [{key: value for key, value in row.items() if not key.startswith("corrupted")} for row in pair_rows()]
    result = run_study(_study(tmp_path, tuned, gpt2, rows=rows, sweeps=SWEEPS[:1]), tmp_path / "out")
    effects: pd.DataFrame = result.effects()
    assert len(effects) == len(rows) * 3 * 2


def test_the_table_of_distances_shows_the_manifest_and_the_summary(gpt2: Path, tuned: Path, tmp_path: Path) -> None:
    from engramscope.report.load import load
    from engramscope.report.training import moved_weights, moved_words
    from engramscope.report.words import percent

    result = run_study(_study(tmp_path, tuned, gpt2), tmp_path / "out")
    moved = moved_weights(load(tmp_path / "out"))
    assert moved is not None
    distance = {(row["part"], row["layer"]): row["relative"] for row in result.manifest()["weights"]}
    table = result.summary()
    first = table[(table["metric"] == "logit_diff") & (table["direction"] == "denoise") & (table["window"] == 1)]
    recovery = {
        (site.removeprefix("weights:"), None if pd.isna(layer) else int(layer)): value
        for site, layer, value in zip(first["site"], first["layer"], first["recovery"], strict=True)
    }
    assert moved.heads == (
        "Attention moved", "Attention restores", "MLP moved", "MLP restores",
        "MLP activation, last subject token", "MLP activation, last token",
        "Norms moved", "Norms restores",
    )  # fmt: skip
    patched = {
        (layer, role): value
        for site, layer, role, value in zip(
            first["site"], first["layer"], first["position_role"], first["recovery"], strict=True
        )
        if site == "mlp_out"
    }
    assert len(patched) == 6
    assert [name for name, _ in moved.rows] == ["Layer 0", "Layer 1", "Layer 2"]
    assert [name for name, _ in moved.others] == ["Embeddings", "Final norm"]
    for layer in range(3):
        wanted = [
            percent(value)
            for part in ("attn", "mlp", "norms")
            for value in (
                distance[part, layer],
                recovery[part, layer],
                *((patched[layer, role] for role in ("subject_last", "last")) if part == "mlp" else ()),
            )
        ]
        assert [text for text, _ in moved.rows[layer][1]] == wanted
    embeddings = [text for text, _ in moved.others[0][1]]
    assert embeddings == [percent(distance["embed", None]), percent(recovery["embed", None])]
    assert max(share for _, cells in moved.rows for _, share in cells[:1]) <= 100
    together = table[(table["metric"] == "logit_diff") & (table["window"] == 2) & (table["direction"] == "denoise")]
    rows = {row["layer"]: row for row in result.manifest()["transplants"] if row["site"] == "weights:block"
            and row["window"] == 2}  # fmt: skip
    wanted = [[percent(rows[int(layer)]["relative"]), percent(value)]
              for layer, value in zip(together["layer"], together["recovery"], strict=True)]  # fmt: skip
    assert len(wanted) == 3
    assert [[text for text, _ in cells] for name, cells in moved.sets if "window 2" in name] == wanted
    assert len(moved.sets) == 6
    assert "rank correlation" not in moved_words(load(tmp_path / "out"))  # three layers say nothing


def test_a_starter_for_two_models_is_accepted_as_it_stands(gpt2: Path, tuned: Path, tmp_path: Path) -> None:
    from tests.tiny_study import pair_rows, write_pairs

    write_pairs(tmp_path / "pairs.jsonl", pair_rows())
    file = str(tmp_path / "moved.toml")
    pairs = str(tmp_path / "pairs.jsonl")
    assert _run_app(["new", file, "--model", str(tuned), "--base", str(gpt2), "--pairs", pairs]) == 0
    assert _run_app(["check", file, "--quiet"]) == 0
    assert _run_app(["run", file, "--out", str(tmp_path / "out"), "--quiet"]) == 0


def test_a_starter_for_questions_without_corrupted_prompts_swaps_answers(gpt2: Path, tmp_path: Path) -> None:
    from engramscope.study_file import read_study
    from tests.tiny_study import pair_rows, write_pairs

    rows = [{key: value for key, value in row.items() if not key.startswith("corrupted")} for row in pair_rows()]
    write_pairs(tmp_path / "pairs.jsonl", rows)
    file = tmp_path / "swap.toml"
    assert _run_app(["new", str(file), "--model", str(gpt2), "--pairs", str(tmp_path / "pairs.jsonl")]) == 0
    study = read_study(file)
    assert (study.corruption.method, study.metrics.names) == ("answer", ["mean_logit_diff"])
    assert _run_app(["check", str(file), "--quiet"]) == 0


def test_models_beside_the_study_file_are_found_from_anywhere(
    gpt2: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(gpt2, tmp_path / "base")
    shutil.copytree(tuned, tmp_path / "tuned")
    study = _study(tmp_path, Path("tuned"), "base", sweeps=SWEEPS[:1])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert _run_app(["check", str(study), "--quiet"]) == 0
    assert _run_app(["run", str(study), "--out", "out", "--quiet"]) == 0
    manifest = json.loads((elsewhere / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["model"]["source"], manifest["base_model"]["source"]) == ("folder", "folder")
    assert manifest["study"]["model"]["name"] == "tuned"

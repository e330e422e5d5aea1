"""The whole study: its file, its stages, and the numbers on its page."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from benchmarks.whole_study import curve_lines, document

from engramscope import bundled, load_model
from engramscope.clap.call import Call
from engramscope.clap.corpus_stage import corpus_of
from engramscope.clap.page import write_page
from engramscope.clap.run import _base, _finetune, best_of
from engramscope.clap.study import ClapStudy, read_clap_study
from engramscope.clap.tables import PRINTED, recovery
from engramscope.cli import _run_app
from engramscope.errors import CheckError, StudyError
from engramscope.finetune import FinetuneResult
from engramscope.finetune import run as finetune_run
from engramscope.finetune.weights import write_random_base
from engramscope.pairs import read_pairs
from engramscope.report.words import bare_p, number, percent
from engramscope.results.read import read_summary
from tests.clap.synthetic import STUDY, write_clap_study
from tests.finetune.small import in_this_process

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run as far as the questions, take one couple out by hand, and go on to the end."""
    folder = tmp_path_factory.mktemp("clap")
    study, out = write_clap_study(folder), folder / "out"
    assert _run_app(["clap", str(study), "--out", str(out), "--until", "questions", "--quiet"]) == 0
    assert json.loads((out / "clap.json").read_text(encoding="utf-8"))["status"] == "running"
    assert not (out / "report.html").exists()
    prompts = out / "questions" / "prompts.jsonl"
    lines = prompts.read_text(encoding="utf-8").splitlines(keepends=True)
    group = json.loads(lines[0])["group"]
    prompts.write_text("".join(line for line in lines if json.loads(line)["group"] != group), encoding="utf-8")
    (folder / "edited").write_text(str(len(lines) - 2), encoding="utf-8")
    assert _run_app(["clap", str(study), "--out", str(out), "--resume", "--quiet"]) == 0
    return out


def _found(out: Path) -> dict[str, Any]:
    return json.loads((out / "clap.json").read_text(encoding="utf-8"))


def test_every_stage_leaves_what_it_made(whole: Path) -> None:
    for file in ("corpus/corpus.parquet", "finetune/clap-2/model.safetensors", "questions/answers.jsonl",
                 "studies/as-published.toml", "as-published/summary.csv", "token-replacement/report.html",
                 "what-training-moved/effects.parquet", "report.html"):  # fmt: skip
        assert (whole / file).is_file(), file
    assert _found(whole)["status"] == "complete"


def test_edited_questions_are_asked_as_they_are(whole: Path) -> None:
    wanted = int((whole.parent / "edited").read_text(encoding="utf-8"))
    for study in ("token-replacement", "what-training-moved"):
        assert len(pd.read_parquet(whole / study / "pairs.parquet")) == wanted


def test_questions_come_from_abstracts_that_were_trained_on(whole: Path) -> None:
    split = pd.read_parquet(whole / "finetune" / "clap-2" / "split.parquet")
    trained = set(split.loc[split["side"] == "train", "PMID"].astype(str))
    evidence = pd.read_csv(whole / "questions" / "prompts.review.csv", dtype=str)
    column = next(name for name in evidence.columns if "pmid" in name.lower())
    named = {pmid for cell in evidence[column].dropna() for pmid in cell.replace(";", " ").replace(",", " ").split()}
    assert named
    assert named <= trained


def test_facts_that_both_forms_ask_for_are_counted(whole: Path) -> None:
    facts = {}
    for form in ("prompts", "answers"):
        pairs = read_pairs(whole / "questions" / f"{form}.jsonl")
        facts[form] = [(pair.clean[slice(*pair.spans["subject"])].lower(), pair.labels["answer"].lower())
                       for pair in pairs]  # fmt: skip
    wanted = len([fact for fact in facts["answers"] if fact in facts["prompts"]])
    assert _found(whole)["questions"]["answers"]["facts_in_prompts"] == wanted
    assert f"Of the answers, {wanted} share their fact with a prompt" in (whole / "report.html").read_text()


def test_the_documentation_of_a_run_says_what_the_folder_holds(whole: Path) -> None:
    text, found = document(whole), _found(whole)
    trained = found["finetune"][found["best"]]
    assert f"| after training | {trained['validation_loss']['after']:.3f} |" in text
    assert f"| before training | {trained['validation_loss']['before']:.3f} |" in text
    for row in found["tables"]:
        assert f"| {row['table']} | {row['patched_part']}{' (cut)' if row['cut'] else ''} | {row['kind']} |" in text
    asked = pd.read_parquet(whole / "what-training-moved" / "pairs.parquet")
    kinds = [json.loads(labels)["kind"] for labels in asked["labels"]]
    for kind in set(kinds):
        mine = asked[[one == kind for one in kinds]]
        for model, column in (("before", "corrupted_logit_diff"), ("after", "clean_logit_diff")):
            right = sum(value > 0 for value in mine[column])
            assert f"| {kind} | {model} training | {right} of {len(mine)} |" in text
    summary = read_summary(whole / "what-training-moved")
    cells = summary[(summary["sweep"] == "MLP weights") & (summary["direction"] == "denoise")
                    & (summary["metric"] == "logit_diff") & ~summary["cut"]]  # fmt: skip
    best = cells.loc[cells["effect"].abs().idxmax()]
    assert f"The weights of the MLP of layer {best['layer']} |" in text


def test_the_curve_in_the_documentation_is_of_plain_means() -> None:
    steps = pd.DataFrame({"step": range(1, 21), "train_loss": [float(n) for n in range(20)],
                          "gradient_norm": [1.0, 3.0] * 10, "learning_rate": [0.5] * 20})  # fmt: skip
    lines = curve_lines(steps, tokens=40_000)
    assert len(lines) == 12
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]] == [
        "3 to 4",
        "8\u202f000",
        "2.500",
        "2.00 (3.00)",
        "0.5",
    ]


def test_the_tables_are_plain_means(whole: Path) -> None:
    effects = pd.read_parquet(whole / "as-published" / "effects.parquet")
    pairs = pd.read_parquet(whole / "as-published" / "pairs.parquet").set_index("pair")
    kinds = pairs["labels"].map(lambda text: json.loads(text)["kind"])
    used = set(pairs.index[pairs["status"] == "used"])
    rows = _found(whole)["tables"]
    assert {(row["table"], row["kind"]) for row in rows} >= {("Table 3", "definitional"), ("Table 4", "definitional")}
    for row in rows:
        mine = [
            one for one in effects.itertuples() if one.sweep == row["patched_part"] and kinds[one.pair] == row["kind"]
        ]
        assert len(mine) == row["n"]
        pooled = [one for one in mine if one.pair in used]
        assert len(pooled) == row["n_pooled"]
        for run in ("clean", "corrupted", "patched") if pooled else ():
            assert row[run] == pytest.approx(sum(getattr(one, run) for one in pooled) / len(pooled), rel=1e-12)
        gap = sum(one.clean - one.corrupted for one in pooled)
        if pooled and not row["cut"]:
            assert row["recovery"] == pytest.approx(sum(one.patched - one.corrupted for one in pooled) / gap, rel=1e-9)
        assert row["cut"] == (row["table"] == "Table 4")


def test_the_model_is_compared_with_the_one_before_training(whole: Path) -> None:
    manifest = json.loads((whole / "what-training-moved" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["base_model"]["name"] == "mini"
    assert manifest["parity"]["max_abs_diff"] <= manifest["parity"]["tolerance"]
    moved = {row["part"] for row in manifest["weights"] if row["distance"] > 0}
    assert {"attn", "mlp", "embed"} <= moved


def _rows(page: str) -> list[list[str]]:
    """The cells of every row of every table of a page, as text."""
    rows = re.findall(r"<tr>(.*?)</tr>", page, flags=re.DOTALL)
    return [[unescape(re.sub(r"<[^>]+>", "", cell)).strip() for cell in re.findall(r"<t[hd].*?</t[hd]>", row)]
            for row in rows]  # fmt: skip


def test_the_page_has_every_number_of_every_table(whole: Path) -> None:
    found, rows = _found(whole), _rows((whole / "report.html").read_text(encoding="utf-8"))
    assert {row["table"] for row in found["tables"] if row["n_pooled"]} == {"Table 3", "Table 4", "Table 5"}
    for row in found["tables"]:
        low, high = row["recovery_low"], row["recovery_high"]
        wanted = [
            row["table"], row["patched_part"], row["kind"], f"{row['n_pooled']} of {row['n']}",
            *(number(row[run]) for run in ("clean", "corrupted", "patched")),
            percent(row["recovery"]) + (" (cut)" if row["cut"] else ""),
            "" if low is None else f"{percent(low)} to {percent(high)}", "–" if row["cut"] else bare_p(row["p"]),
        ]  # fmt: skip
        assert wanted in rows
    settings = found["finetune"]["clap-2"]["settings"]
    for words, key in (("Learning rate", "learning_rate"), ("Batch, training", "train_batch"), ("Seed", "seed")):
        assert [words, str(settings[key])] in rows
    terms = found["corpus"]["terms"]
    for row in terms:
        mine = next(cells for cells in rows if cells[:1] == [row["term"]])
        assert mine[1:4] == [str(row[key]) for key in ("mentions", "substring_mentions", "documents")]


def test_the_page_has_every_figure(whole: Path) -> None:
    page = (whole / "report.html").read_text(encoding="utf-8")
    pictures = dict(
        re.findall(r'<figure><h3>([^<]*)</h3>(?:<a [^>]*>)?<img src="(data:image/svg\+xml;base64,[^"]*)"', page)
    )
    corpus = [path.stem for path in (whole / "corpus" / "figures").glob("*.svg")]
    assert len(corpus) == 3
    for name in corpus:
        assert name.replace("-", " ").replace("_", " ").capitalize() in pictures
    assert {"Loss (as the paper&#39;s Figures 2 and 3)", "Gradient norm"} <= {*pictures} | {
        title.replace("'", "&#39;") for title in pictures
    }
    for study in ("as-published", "token-replacement", "what-training-moved"):
        section = page[page.index(f'<section id="{study}">') :].split("</section>")[0]
        drawn = len(list((whole / study / "figures").glob("*.svg")))
        assert section.count("<img") == min(drawn, 6) > 0
    for source in pictures.values():
        assert b"<svg" in base64.b64decode(source.partition(",")[2])[:2000]


@pytest.mark.parametrize(("losses", "best"), [((2.0, 3.0), "clap-1"), ((3.0, 2.0), "clap-2"), ((2.0, 2.0), "clap-1")])
def test_the_model_with_the_lower_held_out_loss_is_studied(
    whole: Path, tmp_path: Path, losses: tuple[float, float], best: str
) -> None:
    made = json.loads((whole / "finetune" / "clap-2" / "training.json").read_text(encoding="utf-8"))
    tuned, manifests = {}, {}
    for name, loss in zip(("clap-1", "clap-2"), losses, strict=True):
        changed = {**made, "validation_loss": {**made["validation_loss"], "after": loss}}
        changed["settings"] = {**made["settings"], "weight_decay": loss / 8}
        (tmp_path / name).mkdir()
        (tmp_path / name / "training.json").write_text(json.dumps(changed), encoding="utf-8")
        tuned[name], manifests[name] = FinetuneResult(tmp_path / name), changed
    assert best_of(tuned) == best
    shutil.copytree(whole, tmp_path / "out", ignore=shutil.ignore_patterns("*.safetensors"))
    page = write_page(tmp_path / "out", {**_found(whole), "finetune": manifests, "best": best})
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"<h3>(clap-\d)([^<]*)</h3>", text) == [
        (name, " (studied below)" if name == best else "") for name in manifests
    ]
    assert ["Weight decay", *(str(loss / 8) for loss in losses)] in _rows(text)


def test_quick_takes_the_quick_section_and_says_so(tmp_path: Path) -> None:
    section = '[quick]\nabstracts = 20\nquestions = 2\nsettings = ["epochs=2"]\nresamples = 100\n'
    study, out = write_clap_study(tmp_path, STUDY + section), tmp_path / "out"
    assert _run_app(["clap", str(study), "--quick", "--until", "corpus", "--quiet", "--out", str(out)]) == 0
    found = _found(out)
    assert found["quick"] is True
    assert found["study"]["finetune"] == {"presets": ["clap-2"], "settings": ["epochs=2", "limit=20"]}
    assert (found["study"]["questions"]["definitional"], found["study"]["statistics"]["resamples"]) == (2, 100)
    assert _run_app(["clap", str(study), "--quick", "--corpus", "gone.csv", "--out", str(tmp_path / "other")]) == 2
    assert not (tmp_path / "other").exists()


SHARED = os.environ.get("ENGRAMSCOPE_SHARED")


@pytest.mark.slow
@pytest.mark.skipif(SHARED is None, reason="ENGRAMSCOPE_SHARED names no folder with the abstracts")
def test_the_papers_study_is_tried_on_real_abstracts_within_ten_minutes(tmp_path: Path) -> None:
    file, started = Path(SHARED or "") / "data" / "pubmed_epilepsy" / "epilepsy_pubmed.csv", time.monotonic()
    study, out = ROOT / "studies" / "clap_paper.toml", tmp_path / "out"
    assert _run_app(["clap", str(study), "--quick", "--corpus", str(file), "--out", str(out), "--quiet"]) == 0
    assert time.monotonic() - started < 600
    found = _found(out)
    assert (found["status"], found["quick"]) == ("complete", True)
    assert found["finetune"]["clap-2"]["corpus"]["documents"] == 600
    assert (
        found["finetune"]["clap-2"]["validation_loss"]["after"]
        < found["finetune"]["clap-2"]["validation_loss"]["before"]
    )


def test_the_page_says_what_the_tables_say(whole: Path) -> None:
    page = (whole / "report.html").read_text(encoding="utf-8")
    for words in ("CLAP's tables", "Gradient norm", "The abbreviation", "(cut)", "30 abstracts", "what-training-moved"):
        assert words.replace("'", "&#39;") in page or words in page
    assert "<script" not in page


def test_finished_stages_are_not_done_again(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (whole / "finetune" / "clap-2" / "model.safetensors").stat().st_mtime_ns
    assert _run_app(["clap", str(whole.parent / "study.toml"), "--out", str(whole), "--resume"]) == 0
    assert (whole / "finetune" / "clap-2" / "model.safetensors").stat().st_mtime_ns == before
    assert "CLAP's tables in our numbers" in capsys.readouterr().out


def test_another_study_does_not_go_on_there(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = write_clap_study(tmp_path, STUDY.replace("seed = 3", "seed = 4"))
    assert _run_app(["clap", str(study), "--out", str(whole), "--resume"]) == 2
    assert "seed: 3 -> 4" in capsys.readouterr().err


def test_what_was_found_outlives_a_refusal_and_an_earlier_stage(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _found(whole)
    answers = whole / "questions" / "answers.jsonl"
    kept = answers.read_text(encoding="utf-8")
    answers.write_text("".join(kept.splitlines(keepends=True)[:-2]), encoding="utf-8")
    assert _run_app(["clap", str(whole.parent / "study.toml"), "--out", str(whole), "--resume"]) == 2
    assert "as-published belongs to another study" in capsys.readouterr().err
    answers.write_text(kept, encoding="utf-8")
    assert _found(whole) == before
    again = ["clap", str(whole.parent / "study.toml"), "--out", str(whole), "--resume", "--until", "corpus", "--quiet"]
    assert _run_app(again) == 0
    assert _found(whole) == before


def test_other_abstracts_under_the_same_name_are_refused(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = whole.parent / "abstracts.csv"
    kept = corpus.read_bytes()
    corpus.write_bytes(b"".join(kept.splitlines(keepends=True)[:-1]))
    assert _run_app(["clap", str(whole.parent / "study.toml"), "--out", str(whole), "--resume"]) == 2
    assert "abstracts.csv" in capsys.readouterr().err
    corpus.write_bytes(kept)


def test_questions_of_ones_own_are_read_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_clap_study(tmp_path, STUDY.replace("min_documents = 1", 'min_documents = 1\nprompts = "mine.jsonl"'))
    (tmp_path / "mine.jsonl").write_text("no json\n", encoding="utf-8")
    assert _run_app(["clap", str(study), "--out", str(tmp_path / "out")]) == 2
    assert "mine.jsonl" in capsys.readouterr().err
    question = {"id": "q", "clean": "The drug is", "correct": [" a"], "incorrect": [" b"]}
    (tmp_path / "mine.jsonl").write_text(json.dumps(question) + "\n", encoding="utf-8")
    assert _run_app(["clap", str(study), "--out", str(tmp_path / "out")]) == 2
    assert "1 of the questions have no corrupted prompt (q)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_papers_study_is_the_papers() -> None:
    study = read_clap_study(ROOT / "studies" / "clap_paper.toml")
    assert (study.model.name, study.corpus.query, study.corpus.most) == (
        "gpt2", "epilepsy AND (EEG OR seizure)", 10_000,
    )  # fmt: skip
    assert study.finetune.presets == ("clap-1", "clap-2")
    assert not study.finetune.settings
    quick = study.quickened()
    assert (quick.model.name, quick.corpus.most) == ("mini", 600)
    assert "limit=600" in quick.finetune.settings
    assert ClapStudy.model_validate({**study.model_dump(by_alias=True)}) == study


def test_the_study_from_scratch_is_the_papers_but_for_its_model() -> None:
    paper, scratch = (read_clap_study(ROOT / "studies" / f"clap_{name}.toml") for name in ("paper", "from_scratch"))
    assert (scratch.model.name, scratch.model.random_weights) == ("gpt2", True)
    assert scratch.finetune.presets == ("clap-1",)
    assert scratch.corpus == paper.corpus


def test_what_is_printed_does_not_follow_from_what_is_printed() -> None:
    assert {name: round(recovery(*row[:3]), 3) for name, row in PRINTED.items()} == {
        "Table 3": 0.7, "Table 4": 1.0, "Table 5": 0.864,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("[model]\n", "[model]\nrevison = 'x'\n"), "unknown key 'model.revison'"),
        (("definitional = 6", "definitional = 5"), "questions.definitional"),
        (('presets = ["clap-2"]', 'presets = ["clap-3"]'), "unknown preset 'clap-3'"),
        (('"epochs=1"', '"epoch=1"'), "epoch"),
        (('"epochs=1"', '"random_weights=true"'), "random_weights is a key of [model]"),
        (('file = "abstracts.csv"', 'file = "gone.csv"'), "gone.csv"),
        (('file = "abstracts.csv"', ""), "for PubMed"),
        (('name = "mini"', 'name = "minni"'), "minni"),
        (("resamples = 200", "resamples = 200\n[[sweep]]\nname = 'x'"), "engramscope run"),
    ],
)
def test_faults_are_told_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], words: str
) -> None:
    study = write_clap_study(tmp_path, STUDY.replace(*change))
    assert _run_app(["clap", str(study), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_a_study_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="There is no study file"):
        read_clap_study(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("schema = ", encoding="utf-8")
    with pytest.raises(StudyError, match="not valid TOML"):
        read_clap_study(tmp_path / "bad.toml")


@pytest.fixture
def moved(whole: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the whole folder elsewhere, while nothing is left where it was made."""
    there, away = tmp_path / "elsewhere" / "kept", whole.with_name("away")
    shutil.copytree(whole, there)
    whole.rename(away)
    yield there
    away.rename(whole)


def test_a_folder_that_was_moved_goes_on_and_its_studies_run_from_anywhere(
    whole: Path, moved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = whole.parent / "study.toml"
    assert _run_app(["clap", str(study), "--out", str(moved), "--resume"]) == 0
    assert "CLAP's tables in our numbers" in capsys.readouterr().out
    for file in sorted((moved / "studies").iterdir()):
        assert str(whole) not in file.read_text(encoding="utf-8")
    alone = tmp_path / "alone"
    shutil.copytree(moved / "studies", moved / "short")
    short = moved / "short" / "what-training-moved.toml"
    short.write_text(_one_sweep(short.read_text(encoding="utf-8")), encoding="utf-8")
    assert _run_app(["run", str(short), "--out", str(alone), "--quiet"]) == 0
    before, after = (json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
                     for folder in (moved / "what-training-moved", alone))  # fmt: skip
    assert after["model"]["weight_hash"] == before["model"]["weight_hash"]
    assert _run_app(["report", str(moved / "as-published"), "--quiet"]) == 0


def _one_sweep(text: str) -> str:
    """A study file without its second and later sweeps."""
    first, second, *_ = text.split("[[sweep]]")
    return f"{first}[[sweep]]{second}"


def _from_scratch(folder: Path) -> Path:
    """A study of a model without weights: a small configuration and the tokenizer of `mini`."""
    bare = folder / "bare"
    bare.mkdir()
    for path in bundled.folder("mini").iterdir():
        if path.name.startswith("tokenizer"):
            shutil.copy(path, bare)
    config = json.loads((bundled.folder("mini") / "config.json").read_text(encoding="utf-8"))
    small = {"n_layer": 2, "n_embd": 32, "n_head": 2}
    (bare / "config.json").write_text(json.dumps(config | small), encoding="utf-8")
    text = STUDY.replace('name = "mini"', 'name = "bare"\nrandom_weights = true')
    for many, few in (("definitional = 6", "definitional = 2"), ("associative = 4", "associative = 2")):
        text = text.replace(many, few)
    return write_clap_study(folder, text)


@pytest.mark.parametrize("random", [True, False])
def test_the_base_is_what_training_began_from_or_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random: bool
) -> None:
    monkeypatch.setattr(finetune_run, "run_worker", in_this_process)
    study = read_clap_study(_from_scratch(tmp_path))
    if not random:
        write_random_base(str(tmp_path / "bare"), 9, tmp_path / "weights")
        model = study.model.model_copy(update={"name": "weights", "random_weights": False})
        study = study.model_copy(update={"model": model})
    call = Call(study, tmp_path / "out", tmp_path, None, lambda _: None)
    tuned = _finetune(call, corpus_of(call))["clap-2"]
    assert tuned.manifest()["settings"]["random_weights"] == random
    base = _base(call, tuned)
    assert (
        base.weight_hash()
        == tuned.manifest()["model"]["base"]["weights"]
        != load_model(str(tuned.folder)).weight_hash()
    )
    assert (tmp_path / "out" / "base").exists() == random
    # named before it goes: a folder that is missing beside the study would be looked for where the test is run
    place = Path(call.base)
    assert place.is_relative_to(tmp_path)
    shutil.rmtree(place)
    write_random_base(str(tmp_path / "bare"), 4, place)
    with pytest.raises(CheckError, match="are not those that") as caught:
        _base(call, tuned)
    assert ("Another version of torch" in str(caught.value)) == random


@pytest.mark.slow
def test_a_whole_study_from_scratch(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert _run_app(["clap", str(_from_scratch(tmp_path)), "--out", str(out), "--quiet"]) == 0
    manifest = json.loads((out / "what-training-moved" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["base_model"]["weight_hash"] == load_model(str(out / "base")).weight_hash()
    assert manifest["model"]["weight_hash"] == load_model(str(out / "finetune" / "clap-2")).weight_hash()
    # relative, so that the folder can be moved
    assert 'base = "../base"' in (out / "studies" / "what-training-moved.toml").read_text(encoding="utf-8")


def test_a_quick_try_has_weights() -> None:
    study = read_clap_study(ROOT / "studies" / "clap_paper.toml")
    model = study.model.model_copy(update={"random_weights": True})
    assert not study.model_copy(update={"model": model}).quickened().model.random_weights

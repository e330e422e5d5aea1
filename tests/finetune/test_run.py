"""The whole: folder, page, figures and manifest of one history; what is refused; what happens when something breaks."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from engramscope import load_model
from engramscope.cli import _run_app
from engramscope.cli._app import EXIT_INTERRUPTED
from engramscope.corpus.table import COLUMNS
from engramscope.errors import InputError, ResultsError
from engramscope.finetune import prepare, resolve_settings, run, run_finetune, supervise
from engramscope.finetune._worker import FULL, sentence_of
from engramscope.finetune._worker import run as run_worker_here
from engramscope.finetune.history import COLUMNS as HISTORY
from engramscope.finetune.layout import Job, Layout, complete_checkpoints
from engramscope.finetune.page import gradient_figure, loss_figure, write_page
from engramscope.finetune.supervise import TrainingError
from engramscope.finetune.words import trained_parts, warm_up
from tests.finetune.small import corpus_folder, corpus_table, in_this_process
from tests.tiny_study import save_model

FAST = ["epochs=2", "warmup_steps=2", "train_batch=4", "accumulation=2", "learning_rate=1e-3"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus_folder(tmp_path_factory.mktemp("corpus") / "c", corpus_table(60))


@pytest.fixture(scope="module")
def done(gpt2: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """One run through the command line, with the training in its own process; what it printed."""
    out = tmp_path_factory.mktemp("done") / "tuned <model>"
    arguments = ["finetune", "--corpus", str(corpus), "--model", str(gpt2), "--out", str(out), "--device", "cpu"]
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.echo", lambda text="", **_: said.append(str(text)))
        assert _run_app(arguments + [part for one in FAST for part in ("--set", one)]) == 0
    return out, said


def test_what_is_left_in_the_folder(done: tuple[Path, list[str]]) -> None:
    names = {path.name for path in done[0].iterdir()}
    assert names == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "training.json", "history.csv", "steps.csv", "split.parquet", "report.html", "figures",
    }  # fmt: skip
    assert {path.name for path in (done[0] / "figures").iterdir()} == {"loss.svg", "gradient_norm.svg"}


def test_the_folder_is_a_model(done: tuple[Path, list[str]]) -> None:
    hf = AutoModelForCausalLM.from_pretrained(done[0])
    words = AutoTokenizer.from_pretrained(done[0])
    assert {str(one.dtype) for one in hf.parameters()} == {"torch.float32"}
    model = load_model(str(done[0]))
    ids = words("The child called Anna", return_tensors="pt").input_ids
    assert hf(ids).logits.shape[-1] == model.anatomy.vocab


def test_curve_figure_table_page_and_manifest_agree(done: tuple[Path, list[str]]) -> None:
    manifest = json.loads((done[0] / "training.json").read_text(encoding="utf-8"))
    table = pd.read_csv(done[0] / "history.csv")
    rows = manifest["history"]
    assert list(table.columns) == list(HISTORY)
    for name in HISTORY:
        wanted = pd.Series([row[name] for row in rows], dtype=float)
        pd.testing.assert_series_equal(table[name].astype(float), wanted, check_names=False, rtol=1e-12)
    drawn: dict[str, tuple[list[float], list[float]]] = {}
    for figure in (loss_figure(manifest), gradient_figure(manifest)):
        for line in figure.axes[0].lines:
            drawn[str(line.get_gid())] = ([float(x) for x in line.get_xdata()], [float(y) for y in line.get_ydata()])
    trained = table[table["epoch"] > 0]
    assert drawn["validation_loss"] == (table["epoch"].tolist(), [row["validation_loss"] for row in rows])
    for name in ("train_loss", "gradient_norm_mean", "gradient_norm_max"):
        assert drawn[name][0] == trained["epoch"].tolist()
        assert drawn[name][1] == pytest.approx(trained[name].tolist(), rel=1e-12)
    best = table.loc[trained["validation_loss"].idxmin()]
    assert manifest["best_epoch"] == best["epoch"]
    assert manifest["perplexity"]["after"] == pytest.approx(best["validation_perplexity"], rel=1e-12)
    checked = manifest["validation_loss"]["checked"]
    assert checked["chunks"] == manifest["split"]["validation"]["chunks"]
    assert checked["of_the_files"] == pytest.approx(best["validation_loss"], abs=1e-5)
    assert checked["of_the_files"] == pytest.approx(checked["in_training"], abs=1e-5)
    page = (done[0] / "report.html").read_text(encoding="utf-8")
    for row in rows:
        assert f">{row['validation_loss']:.4f}<" in page
    assert "<model>" not in page
    assert "<script" not in page


def test_the_manifest_says_what_was_done(done: tuple[Path, list[str]], corpus: Path) -> None:
    manifest = json.loads((done[0] / "training.json").read_text(encoding="utf-8"))
    assert (manifest["status"], manifest["preset"]) == ("done", "clap-1")
    assert manifest["precision"] == {"asked": "fp16", "used": "fp32"}
    split = pd.read_parquet(done[0] / "split.parquet")
    sides = split["side"].value_counts()
    assert {side: manifest["split"][side]["documents"] for side in sides.index} == sides.to_dict()
    assert sides["validation"] == 12
    counts = manifest["split"]["strata"]
    assert {(name, side): count for name, both in counts.items() for side, count in both.items() if count} == dict(
        split.groupby(["stratum", "side"]).size().to_dict()
    )
    assert manifest["history"][1]["tokens"] == manifest["split"]["train"]["tokens"]
    assert manifest["tokens"] == 2 * manifest["split"]["train"]["tokens"]
    assert manifest["steps"]["per_epoch"] == manifest["history"][1]["step"]
    assert manifest["model"]["base"]["weights"] != ""
    assert manifest["corpus"]["documents"] == 60


def test_what_is_said_aloud(done: tuple[Path, list[str]]) -> None:
    text = "\n".join(done[1])
    assert "FP16 was asked for, but it needs a CUDA device" in text
    assert "chunks have 64 instead of 512" in text
    assert "Before training: validation loss" in text
    assert "Epoch 2 of 2" in text
    assert re.search(r"Perplexity on 12 held-out documents \(.*\): .* before, .* after epoch \d of 2", text)
    assert "Overfitting point" in text


def test_a_finished_run_is_not_run_again_and_another_one_is_refused(
    done: tuple[Path, list[str]], corpus: Path, gpt2: Path
) -> None:
    before = (done[0] / "model.safetensors").stat().st_mtime_ns
    said: list[str] = []
    same = resolve_settings("clap-1", FAST, device="cpu")
    run_finetune(same, corpus, str(gpt2), done[0], resume=True, say=said.append)
    assert said == [f"{done[0]} is finished already."]
    other = resolve_settings("clap-1", [*FAST, "learning_rate=1e-4"], limit=50)
    with pytest.raises(ResultsError) as caught:
        run_finetune(other, corpus, "mini", done[0], resume=True)
    for part in ("setting learning_rate: 0.001 before, 0.0001 now", "setting limit: None before, 50 now",
                 "the tokenizer is another one", "model:"):  # fmt: skip
        assert part in str(caught.value), part
    assert "the corpus is another one" not in str(caught.value)  # another sample of it was asked for
    with pytest.raises(ResultsError, match="the corpus is another one"):
        run_finetune(same, corpus_table(40, seed=9), str(gpt2), done[0], resume=True)
    with pytest.raises(ResultsError, match="is not empty"):
        run_finetune(same, corpus, str(gpt2), done[0])
    assert (done[0] / "model.safetensors").stat().st_mtime_ns == before


def _refused(tmp_path: Path, table: pd.DataFrame | Path, model: str, *sets: str, **given: Any) -> str:
    out = tmp_path / "refused"
    with pytest.raises(InputError) as caught:
        run_finetune(resolve_settings("", [*FAST, *sets], **given), table, model, out)
    assert not out.exists(), "something was written for a run that was refused"
    return str(caught.value)


def test_bad_input_gives_one_sentence_and_no_folder(tmp_path: Path, gpt2: Path) -> None:
    table, model = corpus_table(60), str(gpt2)
    assert "no abstract in any" in _refused(tmp_path, table.head(0), model)
    assert "fewer than one batch of 64" in _refused(tmp_path, table, model, "train_batch=64")
    assert "validation side empty" in _refused(tmp_path, table.head(2), model)
    assert "holds no corpus" in _refused(tmp_path, tmp_path / "nowhere", model)
    lacking = tmp_path / "lacking.parquet"
    table.drop(columns="Abstract").to_parquet(lacking)
    assert "lacks Abstract" in _refused(tmp_path, lacking, model)
    assert "no folder" in _refused(tmp_path, table, str(tmp_path / "no model"))
    assert "no CUDA device" in _refused(tmp_path, table, model, device="cuda") or prepare.torch.cuda.is_available()


def test_a_tokenizer_that_does_not_belong_to_the_model_is_refused(tmp_path: Path) -> None:
    model = save_model(tmp_path / "m")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "vocab_size": 30}))
    assert "do not belong together" in _refused(tmp_path, corpus_table(30), str(model))


def test_the_command_line_says_faults_without_a_traceback(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "finetune",
        "--corpus",
        str(corpus),
        "--out",
        str(tmp_path / "o"),
        "--set",
        "epoch=3",
        "--set",
        "chunk=x",
    ]
    assert _run_app(arguments) == 2
    said = capsys.readouterr().err
    assert "unknown setting 'epoch'; did you mean 'epochs'?" in said
    assert "setting 'chunk'" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(("broken", "kept"), [("prepare", False), ("write_chunks", True)])
def test_ctrl_c_names_a_folder_only_where_it_can_go_on(
    tmp_path: Path, corpus: Path, gpt2: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    broken: str, kept: bool,
) -> None:  # fmt: skip
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "o"
    arguments = ["finetune", "--corpus", str(corpus), "--model", str(gpt2), "--out", str(out), "--prepare"]
    with monkeypatch.context() as patch:
        patch.setattr(run, broken, stop)
        assert _run_app(arguments) == EXIT_INTERRUPTED
    said = capsys.readouterr().err
    assert (f"--resume goes on in {out}." in said) is kept
    assert ("the same command begins anew" in said) is not kept
    assert out.exists() is kept
    assert _run_app([*arguments, *(["--resume"] if kept else [])]) == 0


@pytest.mark.parametrize(("steps", "warmup", "warned"), [("warmup_steps=3", 3, False), ("warmup_steps=500", 500, True)])
def test_a_warm_up_that_never_ends_is_said(gpt2: Path, tmp_path: Path, steps: str, warmup: int, warned: bool) -> None:
    said: list[str] = []
    settings = resolve_settings("", [*FAST, steps])
    run_finetune(settings, corpus_table(60), str(gpt2), tmp_path / "o", prepare_only=True, say=said.append)
    manifest = json.loads((tmp_path / "o" / "training.json").read_text())
    assert manifest["steps"]["warmup"] == warmup
    assert any("never reaches 0.001" in text for text in said) is warned


def test_the_rate_rises_and_then_is_constant(gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "run_worker", in_this_process)
    sets = [*FAST, "epochs=5", "warmup_steps=18", "patience=0"]
    result = run_finetune(resolve_settings("", sets), corpus_table(60), str(gpt2), tmp_path / "o")
    table = result.history()[1:]
    steps = table["step"].iloc[0]
    assert steps < 18
    # the first step has rate 0, the s-th (s - 1) / 18 of the whole
    wanted = [min(1.0, (step - 1) / 18) * 1e-3 for step in table["step"]]
    assert table["learning_rate"].tolist() == pytest.approx(wanted, rel=1e-9)
    assert wanted[-1] == wanted[-2] == 1e-3


def test_a_tokenizer_without_pad_and_end_of_text_still_trains(
    gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "run_worker", in_this_process)
    model = tmp_path / "m"
    shutil.copytree(gpt2, model)
    file = model / "tokenizer_config.json"
    found = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in found.items() if not key.endswith("_token")}))
    said: list[str] = []
    result = run_finetune(resolve_settings("", FAST), corpus_table(40), str(model), tmp_path / "o", say=said.append)
    assert result.manifest()["pad"] == {"id": 0, "from": "id 0"}
    assert sum("no end-of-text token" in text for text in said) == 2


def test_a_training_that_is_killed_says_how_to_go_on(gpt2: Path, tmp_path: Path) -> None:
    settings = resolve_settings("", [*FAST, "epochs=500", "patience=0"])
    out = tmp_path / "o"

    def kill() -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            locks = Layout(out).events
            if locks.exists() and "training" in locks.read_text():
                break
            time.sleep(0.05)
        found = subprocess.run(["pgrep", "-f", f"_worker {out}$"], capture_output=True, text=True, check=False)
        for number in found.stdout.split():
            os.kill(int(number), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(TrainingError, match=r"killed by signal 9 .*--resume goes on"):
        run_finetune(settings, corpus_table(60), str(gpt2), out)
    thread.join()


def test_a_model_that_cannot_be_loaded_is_said_by_the_parent(gpt2: Path, tmp_path: Path) -> None:
    model = tmp_path / "m"
    shutil.copytree(gpt2, model)
    (model / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match="cannot be loaded"):
        run_finetune(resolve_settings("", FAST), corpus_table(30), str(model), tmp_path / "o")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = os.name == "posix" and shutil.which("mount") is not None and os.geteuid() == 0
    if (
        not mounted
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("a small disk can only be mounted by root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


def test_a_full_disk_is_said_and_the_last_checkpoint_is_still_there(
    small_disk: Path, gpt2: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = resolve_settings("", [*FAST, "epochs=40", "patience=0", "save_steps=1"])
    out = small_disk / "o"
    run_finetune(settings, corpus_table(40), str(gpt2), out, prepare_only=True)
    layout = Layout(out)
    filler = small_disk / "filler"
    assert Job.read(layout.job).settings.epochs == 40

    def fill() -> None:
        until = time.monotonic() + 60
        while not complete_checkpoints(layout.checkpoints) and time.monotonic() < until:
            time.sleep(0.01)
        filler.write_bytes(b"0" * max(0, shutil.disk_usage(small_disk).free - 30_000))

    thread = threading.Thread(target=fill)
    thread.start()
    code = run_worker_here(out)
    thread.join()
    assert code == FULL
    events = [json.loads(line) for line in layout.events.read_text().splitlines() if '"fault"' in line]
    assert len(events) == 1
    assert "full" in events[0]["faults"][0]
    assert "--resume" in events[0]["faults"][0]
    assert complete_checkpoints(layout.checkpoints)
    filler.unlink()
    capfd.readouterr()


def test_what_the_machine_refuses_is_put_into_words(tmp_path: Path) -> None:
    assert "is full" in str(sentence_of(OSError(28, "No space left on device"), tmp_path))
    inner = RuntimeError("anything")
    inner.__cause__ = OSError(28, "No space left on device")
    assert "is full" in str(sentence_of(inner, tmp_path))
    assert "not enough memory" in str(sentence_of(RuntimeError("DefaultCPUAllocator: can't allocate memory"), tmp_path))
    assert sentence_of(RuntimeError("a defect"), tmp_path) is None


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    """Batches of 4 in two processes are batches of 8 in one: the same steps, the same losses."""
    model = save_model(tmp_path / "m", "gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, n_positions=128)
    found = []
    for processes, batch in ((1, 8), (2, 4)):
        sets = [*FAST, f"train_batch={batch}", "accumulation=1"]
        settings = resolve_settings("", sets, processes=processes, device="cpu")
        # with 80 chunks no batch has to be filled up
        found.append(run_finetune(settings, corpus_table(100), str(model), tmp_path / f"o{processes}"))
    one, two = (result.history() for result in found)
    columns = ["epoch", "step", "train_loss", "validation_loss", "gradient_norm_mean", "tokens"]
    for name in columns:
        assert two[name][1:].tolist() == pytest.approx(one[name][1:].tolist(), rel=1e-4), name
    assert found[1].manifest()["processes"] == 2
    assert found[1].manifest()["split"]["train"]["chunks"] == 80


@pytest.mark.slow
def test_two_processes_go_on_within_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle of the second epoch: the rest of it is the rest of its own order, not of another's."""
    monkeypatch.setattr(supervise, "_PAUSE", 0.005)
    model = save_model(tmp_path / "m", "gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, n_positions=128)
    settings = resolve_settings("", [*FAST, "accumulation=1", "save_minutes=0"], processes=2, device="cpu")
    whole = run_finetune(settings, corpus_table(400), str(model), tmp_path / "whole")
    layout = Layout(tmp_path / "stopped")
    steps = whole.manifest()["steps"]["per_epoch"]
    assert steps == 40

    def stop_there(what: str, done: int, total: int) -> None:
        if what == "training" and done > steps:
            layout.stop.touch()

    with pytest.raises(KeyboardInterrupt):
        run_finetune(settings, corpus_table(400), str(model), layout.root, progress=stop_there)
    assert steps < complete_checkpoints(layout.checkpoints)[-1][0] < 2 * steps
    again = run_finetune(settings, corpus_table(400), str(model), layout.root, resume=True)
    pd.testing.assert_frame_equal(again.steps(), whole.steps(), rtol=1e-4)


SHARED = os.environ.get("ENGRAMSCOPE_SHARED")


@pytest.mark.skipif(SHARED is None, reason="ENGRAMSCOPE_SHARED names no folder with the abstracts")
def test_fine_tuning_mini_on_real_abstracts_lowers_held_out_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "run_worker", in_this_process)
    file = Path(SHARED or "") / "data" / "pubmed_epilepsy" / "epilepsy_pubmed.csv"
    table = pd.read_csv(file, dtype=str, nrows=20).fillna("").assign(Keywords="", Year=2000)[list(COLUMNS)]
    sets = ["epochs=2", "warmup_steps=2", "learning_rate=5e-4", "accumulation=2", "chunk=64"]
    result = run_finetune(resolve_settings("clap-2", sets, device="cpu"), table, "mini", tmp_path / "o")
    before, first, second = result.history()["validation_loss"]
    assert before > first > second
    assert second < 0.8 * before
    assert load_model(str(tmp_path / "o")).weight_hash() != load_model("mini").weight_hash()


def test_the_environment_of_the_training(gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    settings = resolve_settings("")
    job = Job(settings, "m", 8, 0, "cuda", "fp32")
    assert supervise.environment(job)["CUDA_VISIBLE_DEVICES"] == "3"
    two = Job(resolve_settings("", processes=2), "m", 8, 0, "cuda", "fp32")
    assert supervise.environment(two)["CUDA_VISIBLE_DEVICES"] == "3,5"
    assert supervise.environment(Job(settings, "m", 8, 0, "cpu", "fp32"))["CUDA_VISIBLE_DEVICES"] == ""
    kept = "MALLOC_TRIM_THRESHOLD_"
    monkeypatch.delenv(kept, raising=False)
    assert supervise.environment(Job(settings, "m", 8, 0, "cpu", "fp32"))[kept] == "100000000000"
    assert kept not in supervise.environment(Job(settings, "m", 8, 0, "cuda", "fp32"))
    monkeypatch.setenv(kept, "1")
    assert supervise.environment(Job(settings, "m", 8, 0, "cpu", "fp32"))[kept] == "1"
    assert "--nproc-per-node=2" in supervise.command(Layout(Path("x")), 2)


def _manifest(done: tuple[Path, list[str]], **changes: Any) -> dict[str, Any]:
    """The manifest of the finished run with other settings, and what `changes` names."""
    found = json.loads((done[0] / "training.json").read_text(encoding="utf-8"))
    settings = {**found["settings"], **changes.pop("settings", {})}
    return {**found, "settings": settings, **changes}


def _page(folder: Path, manifest: dict[str, Any]) -> str:
    folder.mkdir(exist_ok=True)
    text = write_page(folder, manifest).read_text(encoding="utf-8")
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", text.split("</style>")[1])).replace("\u202f", " ").split())


def test_a_rate_that_was_never_reached_is_on_the_page_with_what_to_set(
    gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "run_worker", in_this_process)
    settings = resolve_settings("", [*FAST, "warmup_steps=500", "epochs=4", "patience=0"])
    result = run_finetune(settings, corpus_table(60), str(gpt2), tmp_path / "o")
    manifest = result.manifest()
    steps, rate = manifest["history"][-1]["step"], manifest["history"][-1]["learning_rate"]
    wanted = (
        f"The learning rate never reached 0.001: the warm-up takes 500 steps, the training had {steps}, and the rate "
        f"ended at {rate:.2g}. --set warmup_steps={steps // 10} warms up over a tenth of it."
    )
    assert steps >= 20
    assert wanted in result.sentences()
    page = _page(tmp_path / "p", manifest)
    assert page.count(wanted) == 1
    assert any(note.startswith("The warm-up of 500 steps") for note in manifest["notes"])
    assert "The warm-up of" not in page


def test_nothing_is_said_of_a_warm_up_that_ended(done: tuple[Path, list[str]]) -> None:
    assert warm_up(_manifest(done)) == ""
    assert warm_up(_manifest(done, settings={"warmup_steps": 0})) == ""
    rows = [{**row, "learning_rate": 0.0005, "step": 9} for row in _manifest(done)["history"]]
    stopped_early = warm_up(_manifest(done, history=rows))
    assert "ended at 0.0005" in stopped_early
    assert "--set warmup_steps=0 leaves the warm-up out." in stopped_early  # of a handful of steps nothing is a tenth


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, ""),
        ({"only": ["transformer.h.0.mlp"]}, "Only transformer.h.0.mlp was trained; all else stays as it was."),
        ({"only": ["a.b", "c.d"]}, "Only a.b and c.d were trained"),
        ({"lora": {"rank": 4, "alpha": 16.0, "dropout": 0.0, "targets": ["c_attn"]}},
         "low-rank adapters (LoRA, rank 4, alpha 16, on c_attn), which are folded into the weights."),
        ({"lora": {"rank": 8, "alpha": 0.5, "dropout": 0.0, "targets": []}, "merge": False},
         "(LoRA, rank 8, alpha 0.5), which are left beside the base as an adapter."),
        ({"random_weights": True}, "Training began from random weights."),
    ],
)  # fmt: skip
def test_the_page_names_what_was_trained(
    done: tuple[Path, list[str]], tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    manifest = _manifest(done, settings=settings)
    assert words in trained_parts(manifest)
    assert bool(trained_parts(manifest)) is bool(words)
    assert words in _page(tmp_path / "p", manifest)


def test_one_document_is_one(done: tuple[Path, list[str]], tmp_path: Path) -> None:
    manifest = _manifest(done)
    for side in ("train", "validation"):
        manifest["split"][side]["documents"] = 1
    assert "Trained on 1 document, validated on 1 other." in _page(tmp_path / "p", manifest)


def test_a_single_epoch_is_seen(done: tuple[Path, list[str]]) -> None:
    manifest = _manifest(done)
    rows = manifest["history"][:2]
    for figure in (loss_figure, gradient_figure):
        axes = figure({**manifest, "history": rows, "best_epoch": 1, "overfitting_epoch": None}).axes[0]
        lone = [line for line in axes.lines if str(line.get_gid()) != "validation_loss" and len(line.get_xdata()) == 1]
        assert lone
        assert all(line.get_marker() == "o" and line.get_markersize() >= 6 for line in lone)
        low, high = axes.get_xlim()
        ticks = [place for place in axes.get_xticks() if low <= place <= high]
        assert ticks == [float(row["epoch"]) for row in rows if figure is loss_figure or row["epoch"]]
        assert high == 1.5
    many = loss_figure(manifest).axes[0]
    assert all(line.get_markersize() < 6 for line in many.lines if line.get_gid())

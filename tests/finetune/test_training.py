"""What is learned and what is measured, against plain loops; and what a kill cannot harm."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from engramscope import load_model
from engramscope.errors import CheckError, InputError
from engramscope.finetune import run, training
from engramscope.finetune import tuner as tuning
from engramscope.finetune.chunks import Padding
from engramscope.finetune.history import History, best_row, epochs_since_best, overfitting_epoch
from engramscope.finetune.keeper import Keeper
from engramscope.finetune.layout import COMPLETE, Job, Layout, complete_checkpoints, read_chunks
from engramscope.finetune.order import StepOrder
from engramscope.finetune.supervise import command, environment
from engramscope.finetune.training import Listener, _fit, make_tuner, train, training_arguments
from engramscope.finetune.tuner import Tuner
from engramscope.finetune.weights import load_trained, write_model, write_random_base
from tests.finetune.small import go_on, in_this_process, naive_loss, prepared, same_runs, stop_at
from tests.tiny_study import save_model


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "run_worker", in_this_process)


def test_the_validation_loss_is_a_mean_over_tokens(dropping: str, undisturbed: Any, tmp_path: Path) -> None:
    layout = prepared(dropping, tmp_path / "run")
    validation = read_chunks(layout.chunks)[1]
    assert len({len(chunk) for chunk in validation}) > 3
    history = undisturbed.history()
    before, of_batches = naive_loss(dropping, validation)
    assert history["validation_loss"][0] == pytest.approx(before, rel=1e-5)
    assert abs(of_batches - before) > 1e-4, "this corpus could not tell the two means apart"
    # what is in the folder is the best epoch, and gives its loss
    after, _ = naive_loss(undisturbed.folder, validation)
    manifest = undisturbed.manifest()
    assert manifest["validation_loss"]["after"] == pytest.approx(after, rel=1e-5)
    assert manifest["perplexity"]["after"] == pytest.approx(math.exp(after), rel=1e-5)
    assert history["validation_loss"].min() == pytest.approx(after, rel=1e-5)
    assert after < before


def test_the_weights_in_the_folder_are_checked_on_a_spread_of_held_out_chunks(
    dropping: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "CHECKED", 5)
    layout = prepared(dropping, tmp_path / "run")
    validation = read_chunks(layout.chunks)[1]
    assert len(validation) == 12
    result = go_on(dropping, layout.root)
    wanted, _ = naive_loss(result.folder, [validation[place] for place in (0, 3, 6, 8, 11)])
    checked = result.manifest()["validation_loss"]["checked"]
    assert checked["chunks"] == 5
    assert checked["in_training"] == pytest.approx(wanted, rel=1e-5)
    assert checked["of_the_files"] == pytest.approx(wanted, rel=1e-5)
    assert abs(wanted - result.manifest()["validation_loss"]["after"]) > 1e-4


def test_weights_that_do_not_give_the_loss_of_the_history_are_refused(
    dropping: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(model: Any, checkpoint: Path) -> Any:
        with torch.no_grad():
            load_trained(model, checkpoint).transformer.h[0].mlp.c_fc.weight.mul_(1.5)
        return model

    monkeypatch.setattr(training, "load_trained", other)
    with pytest.raises(CheckError, match=r"12 held-out chunks a loss of .*not to be trusted"):
        go_on(dropping, tmp_path / "run")


@pytest.mark.parametrize("factor", [1.1, math.nan])
def test_a_folder_that_was_written_wrongly_is_refused(
    dropping: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    """The files in the folder are read, not what was in memory when they were written."""

    def spoilt(hf: Any, tokenizer: Any, folder: Path, into: Path, base: str) -> None:
        write_model(hf, tokenizer, folder, into, base)
        state = load_file(into / "model.safetensors")
        save_file({name: factor * value for name, value in state.items()}, into / "model.safetensors")

    monkeypatch.setattr(training, "write_model", spoilt)
    with pytest.raises(CheckError, match="not to be trusted"):
        go_on(dropping, tmp_path / "run")


def test_one_step_is_the_gradient_of_the_mean_over_all_its_tokens(tmp_path: Path) -> None:
    """One optimiser step over the whole training side in four unequal batches, by hand: loss, norm, and AdamW."""
    rate = 1e-2
    gpt2 = save_model(tmp_path / "model", "gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    sets = ["epochs=1", "warmup_steps=0", "train_batch=13", "accumulation=4", f"learning_rate={rate}",
            "weight_decay=0.1", "patience=0"]  # fmt: skip
    result = go_on(str(gpt2), tmp_path / "run", *sets)
    layout = prepared(str(gpt2), tmp_path / "same", *sets)
    training = read_chunks(layout.chunks)[0]
    assert 39 < len(training) <= 52
    hf = AutoModelForCausalLM.from_pretrained(gpt2).train()
    nll, count = torch.zeros(()), 0
    for chunk in training:
        ids = torch.tensor([chunk.tolist()])
        nll = nll - hf(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).sum()
        count += len(chunk) - 1
    (nll / count).backward()
    norm = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in hf.parameters() if p.grad is not None]))
    row = result.history().iloc[1]
    assert (row["step"], row["tokens"]) == (1, count)
    assert row["train_loss"] == pytest.approx((nll / count).item(), rel=1e-5)
    assert row["gradient_norm_mean"] == pytest.approx(norm.item(), rel=1e-4)
    # the first step of Adam moves by rate × sign of the gradient, after a decay of matrices only
    trained = AutoModelForCausalLM.from_pretrained(result.folder)
    for (name, before), after in zip(hf.named_parameters(), trained.parameters(), strict=True):
        assert before.grad is not None
        scale = min(1.0, 1 / (norm.item() + 1e-6))
        grad = before.grad * scale
        decay = 1 - rate * 0.1 if before.ndim > 1 else 1.0
        wanted = before.detach() * decay - rate * grad / (grad.abs() + 1e-8)
        clear = grad.abs() > 1e-5
        torch.testing.assert_close(after.detach()[clear], wanted[clear], rtol=0, atol=2e-4, msg=name)


def test_every_epoch_has_an_order_of_its_own_also_where_it_goes_on(
    dropping: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sampler knows which epoch it is, also where training goes on in the middle of one."""
    orders: dict[int, list[int]] = {}
    drawn = StepOrder.__iter__

    def noted(order: StepOrder) -> Iterator[int]:
        found = list(drawn(order))
        assert orders.setdefault(order.epoch, found) == found
        return iter(found)

    monkeypatch.setattr(StepOrder, "__iter__", noted)
    layout = prepared(dropping, tmp_path / "run")
    steps = json.loads(layout.manifest.read_text())["steps"]["per_epoch"]
    stop_at(layout, steps + 2, lambda: go_on(dropping, layout.root), monkeypatch)
    assert sorted(orders) == [0, 1]
    go_on(dropping, layout.root)
    assert sorted(orders) == list(range(len(orders)))
    assert len(orders) > 2
    assert len({tuple(order) for order in orders.values()}) == len(orders)


def test_only_the_named_module_moves(gpt2: Path, tmp_path: Path) -> None:
    result = go_on(str(gpt2), tmp_path / "run", "epochs=1", only=["transformer.h.1.mlp"])
    before = AutoModelForCausalLM.from_pretrained(gpt2).state_dict()
    after = AutoModelForCausalLM.from_pretrained(result.folder).state_dict()
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith("transformer.h.1.mlp.")}
    model = result.manifest()["model"]
    assert model["trained"] == sum(before[name].numel() for name in moved) < model["parameters"]


def test_a_module_that_is_not_there_is_named_and_a_tied_one_is_said(gpt2: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such module with parameters; did you mean 'transformer.h.1.mlp'\?"):
        go_on(str(gpt2), tmp_path / "wrong", only=["transformer.h.1.mpl"])
    assert not (tmp_path / "wrong" / "training.json").exists()  # the folder is free for the right name
    result = go_on(str(gpt2), tmp_path / "tied", "epochs=1", only=["lm_head"])
    assert any("shares its weights with transformer.wte.weight" in note for note in result.manifest()["notes"])


def _logits(hf: Any) -> torch.Tensor:
    with torch.no_grad():
        return hf.eval()(torch.arange(12)[None]).logits


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own
def test_a_merged_adapter_gives_what_the_adapter_gives(gpt2: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    sets = ["epochs=2", "lora.targets=c_proj", "lora.rank=3", "learning_rate=1e-2"]
    merged = go_on(str(gpt2), tmp_path / "merged", *sets, lora={})
    apart = go_on(str(gpt2), tmp_path / "apart", *sets, lora={}, merge=False)
    base = AutoModelForCausalLM.from_pretrained(gpt2)
    one = AutoModelForCausalLM.from_pretrained(merged.folder)
    before, after = base.state_dict(), one.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.endswith("c_proj.weight")}
    two = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(gpt2), str(apart.folder))
    config = json.loads((apart.folder / "adapter_config.json").read_text())
    assert Path(config["base_model_name_or_path"]) == gpt2
    torch.testing.assert_close(_logits(one), _logits(two), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(_logits(one), _logits(base), atol=1e-3)
    assert merged.manifest()["model"]["trained"] < 5000


def test_random_weights_need_no_weights_and_come_from_the_seed(gpt2: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    for path in Path(gpt2).iterdir():
        if path.suffix == ".json":
            shutil.copy(path, folder)
    found = [
        go_on(str(folder), tmp_path / f"run{number}", "epochs=1", f"seed={seed}", random_weights=True)
        for number, seed in enumerate((1, 1, 2))
    ]
    hashes = [one.manifest()["model"]["base"]["weights"] for one in found]
    assert hashes[0] == hashes[1] != hashes[2]
    # the weights that training began from can be had again, and nobody's generator is touched
    before = torch.random.get_rng_state()
    for seed, wanted in ((1, hashes[0]), (2, hashes[2])):
        write_random_base(str(folder), seed, tmp_path / f"base{seed}")
        assert load_model(str(tmp_path / f"base{seed}")).weight_hash() == wanted
    assert torch.equal(torch.random.get_rng_state(), before)


class Scripted(Tuner):
    """Validation losses that are written down beforehand."""

    curve: tuple[float, ...] = ()

    def validation_loss(self, asked: Any = None) -> float:
        done = round(self.state.epoch or 0)
        return self.curve[done]


@pytest.mark.parametrize(
    ("curve", "patience", "epochs", "best", "turns"),
    [
        ((9, 5, 4, 3, 3.5, 3.2, 3.1, 1), 3, 6, 3, 3),  # three epochs without a new minimum: stopped before the 1
        ((9, 5, 4, 4, 4, 4, 1), 3, 5, 2, None),  # equal is no improvement, and no turn either
        ((9, 5, 4, 3, 2, 1, 0.5, 0.4), 3, 7, 7, None),
        ((1, 5, 6, 4, 7, 3, 8), 3, 6, 5, 5),  # two bad ones in a row never stop it; epoch 0 is no candidate
        ((9, 5, 6, 7, 8, 9, 9, 9), 0, 7, 1, 1),  # patience 0 never stops
    ],
)
def test_early_stopping_and_the_best_checkpoint_on_scripted_curves(
    gpt2: Path, tmp_path: Path, curve: tuple[float, ...], patience: int, epochs: int, best: int, turns: int | None
) -> None:
    limit = len(curve) - 1
    layout = prepared(str(gpt2), tmp_path / "run", f"epochs={limit}", f"patience={patience}", count=20)
    weights: dict[int, torch.Tensor] = {}
    rows = _scripted(layout, curve, weights)
    assert [row["epoch"] for row in rows] == list(range(epochs + 1))
    assert [row["validation_loss"] for row in rows] == list(curve[: epochs + 1])
    found = best_row(rows)
    assert found is not None
    assert (found["epoch"], overfitting_epoch(rows)) == (best, turns)
    kept = dict(complete_checkpoints(layout.checkpoints))
    assert set(kept) == {found["step"], rows[-1]["step"]}
    # the checkpoint of the best epoch holds the weights that the model had then
    held = load_file(kept[found["step"]] / "model.safetensors")["transformer.h.0.mlp.c_fc.weight"]
    assert torch.equal(held, weights[best])
    assert not any(torch.equal(held, weights[epoch]) for epoch in weights if epoch != best)
    # a resume of a training that has stopped does not train any more
    again = _scripted(layout, curve, {}, History(**json.loads((kept[rows[-1]["step"]] / COMPLETE).read_text())))
    assert again == rows


def _scripted(
    layout: Layout, curve: tuple[float, ...], weights: dict[int, torch.Tensor], history: History | None = None
) -> list[dict[str, Any]]:
    job = Job.read(layout.job)
    hf = AutoModelForCausalLM.from_pretrained(job.model)
    listener = Listener(lambda *_: None, lambda row: weights.__setitem__(
        row["epoch"], hf.transformer.h[0].mlp.c_fc.weight.detach().clone()), lambda _: None)  # fmt: skip
    keeper = Keeper(layout, history or History(), save_minutes=0, save_steps=0, half=False, tell=listener.tell,
                    on_epoch=listener.on_epoch)  # fmt: skip
    kind = type("ThisCurve", (Scripted,), {"curve": curve})
    train, validation = read_chunks(layout.chunks)
    tuner = make_tuner(hf, training_arguments(job, layout), train, validation, Padding(0, job.chunk), job.settings,
                       keeper, listener.tell, kind)  # fmt: skip
    done = complete_checkpoints(layout.checkpoints)
    _fit(tuner, keeper, job.settings, str(done[-1][1]) if done else None, True, listener)
    return keeper.history.rows


@pytest.mark.parametrize(
    ("curve", "words"),
    [((math.nan, 5), "Before training the validation loss is nan"), ((9, math.inf), "after epoch 1")],
)
def test_a_validation_loss_that_is_no_number_ends_it(
    gpt2: Path, tmp_path: Path, curve: tuple[float, ...], words: str
) -> None:
    layout = prepared(str(gpt2), tmp_path / "run", "epochs=1", count=20)
    with pytest.raises(InputError, match=words):
        _scripted(layout, curve, {})


def test_another_number_of_processes_than_prepared_for_is_refused(gpt2: Path, tmp_path: Path) -> None:
    layout = prepared(str(gpt2), tmp_path / "run", processes=2, device="cpu", count=20)
    with pytest.raises(InputError, match=r"prepared for --processes 2, but 1 are running"):
        train(layout, Listener(lambda *_: None, lambda _: None, lambda _: None))


def test_the_keeper_says_which_epoch_it_is_where_nobody_else_can() -> None:
    keeper = Keeper(Layout(Path("x")), History(), save_minutes=0, save_steps=0, half=False, tell=lambda *_: None,
                    on_epoch=lambda _: None)  # fmt: skip
    order = StepOrder([3, 4, 5], 2, 0)
    keeper.watch(cast("Tuner", SimpleNamespace(order=order)))
    for step, epoch in ((0, 0), (7, 1), (10, 2), (14, 2)):
        state = SimpleNamespace(global_step=step, max_steps=15)
        keeper.on_epoch_begin(cast("Any", SimpleNamespace(num_train_epochs=3.0)), cast("Any", state))
        assert order.epoch == epoch


def test_experts_are_trained_gone_on_with_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their names in a file are not those of the modules, which hold all experts of a layer as one tensor."""
    model = str(save_model(tmp_path / "model", "mixtral"))
    whole = go_on(model, tmp_path / "whole", "epochs=2", count=30)
    layout = prepared(model, tmp_path / "run", "epochs=2", count=30)
    stop_at(layout, 2, lambda: go_on(model, layout.root, "epochs=2", count=30), monkeypatch)
    again = go_on(model, layout.root, "epochs=2", count=30)
    same_runs(again, whole)
    before = AutoModelForCausalLM.from_pretrained(model).state_dict()
    after = AutoModelForCausalLM.from_pretrained(again.folder).state_dict()
    experts = [name for name in before if "experts" in name]
    assert experts
    assert all(not torch.equal(before[name], after[name]) for name in experts)


def test_validation_of_a_training_in_half_precision_is_in_full_precision(dropping: str, tmp_path: Path) -> None:
    result = go_on(dropping, tmp_path / "run", "precision=bf16")
    validation = read_chunks(prepared(dropping, tmp_path / "same").chunks)[1]
    assert result.manifest()["precision"]["used"] == "bf16"
    loss, _ = naive_loss(result.folder, validation)
    assert result.manifest()["validation_loss"]["after"] == pytest.approx(loss, rel=1e-5)
    assert AutoModelForCausalLM.from_pretrained(result.folder).config.use_cache


def test_epochs_since_the_best() -> None:
    rows = [{"epoch": epoch, "validation_loss": loss} for epoch, loss in enumerate((0, 3, 2, 2, 4))]
    assert [epochs_since_best(rows[:count]) for count in range(1, 6)] == [0, 0, 0, 1, 2]
    assert best_row(rows[:1]) is None
    assert overfitting_epoch(rows[:1]) is None


def _kill_when(layout: Layout, enough: Any) -> None:
    """Start the process that trains, and SIGKILL it as soon as the folder looks as wanted."""
    job = Job.read(layout.job)
    process = subprocess.Popen(command(layout, 1), env=environment(job), stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    until = time.monotonic() + 120
    while not enough() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.001)
    assert process.poll() is None, "it ended before it was killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_a_kill_within_an_epoch_and_one_at_its_end_change_nothing(
    dropping: str, undisturbed: Any, tmp_path: Path
) -> None:
    """Killed first in the middle of the second epoch, then when the third one's checkpoint is being written."""
    folder = tmp_path / "run"
    layout = prepared(dropping, folder, "save_steps=1")
    steps = json.loads((folder / "training.json").read_text())["steps"]["per_epoch"]
    assert steps >= 4
    _kill_when(layout, lambda: (layout.checkpoints / f"checkpoint-{steps + 2}" / COMPLETE).exists())
    done = complete_checkpoints(layout.checkpoints)
    assert steps + 2 <= done[-1][0] < 2 * steps
    layout.result.unlink(missing_ok=True)
    _kill_when(layout, lambda: (layout.checkpoints / f"checkpoint-{2 * steps}").exists())
    assert not layout.result.exists()
    result = go_on(dropping, folder)
    assert len(result.manifest()["resumed"]) == 1
    same_runs(result, undisturbed)


@pytest.mark.parametrize("stop_after", [3, 5])
def test_a_stop_on_request_saves_and_goes_on(
    dropping: str, undisturbed: Any, tmp_path: Path, stop_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = prepared(dropping, tmp_path / "run")
    stop_at(layout, stop_after, lambda: go_on(dropping, layout.root), monkeypatch)
    assert complete_checkpoints(layout.checkpoints)[-1][0] == stop_after
    result = go_on(dropping, layout.root)
    same_runs(result, undisturbed)


def test_a_stop_before_training_is_at_once_and_loses_nothing(dropping: str, undisturbed: Any, tmp_path: Path) -> None:
    layout, told = prepared(dropping, tmp_path / "run"), []

    def stop(what: str, done: int, total: int) -> None:
        told.append((what, done, total))
        layout.stop.touch()

    assert train(layout, Listener(stop, lambda row: None, lambda text: None)) is False
    ((what, done, total),) = told
    assert what == "validation"
    assert done < total
    assert not complete_checkpoints(layout.checkpoints)
    same_runs(go_on(dropping, layout.root), undisturbed)


def test_a_half_written_checkpoint_is_not_gone_on_from(dropping: str, undisturbed: Any, tmp_path: Path) -> None:
    layout = prepared(dropping, tmp_path / "run")
    (layout.checkpoints / "checkpoint-7").mkdir(parents=True)
    (layout.checkpoints / "checkpoint-7" / "model.safetensors").write_bytes(b"half")
    same_runs(go_on(dropping, layout.root), undisturbed)

"""One training from its first step, or from its last checkpoint, to the model in its folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from peft import PeftModel
from transformers import EarlyStoppingCallback, PrinterCallback, TrainingArguments, enable_full_determinism, set_seed

from engramscope.errors import CheckError, InputError, ResultsError
from engramscope.finetune.chunks import Padding
from engramscope.finetune.history import History, best_row, epochs_since_best, trained_rows
from engramscope.finetune.keeper import Keeper, ensure_finite, remove_incomplete
from engramscope.finetune.layout import COMPLETE, SUPERVISED, Job, Layout, complete_checkpoints, read_chunks
from engramscope.finetune.settings import Settings
from engramscope.finetune.steps import read_steps
from engramscope.finetune.tuner import BrokenOff, Tuner, checked_places, predicted_tokens, validation_nll
from engramscope.finetune.weights import (
    base_model,
    keep_only,
    load_trained,
    parameter_counts,
    with_adapters,
    write_model,
)
from engramscope.models import load_tokenizer
from engramscope.results.atomic import write_json

#: what the loss of the weights on the disk may differ from the one of the history, in nats
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Listener:
    """Who is told of a training.

    Attributes:
        tell: (what, done, total).
        on_epoch: the row of an epoch that ended.
        say: a sentence.
    """

    tell: Callable[[str, int, int], None]
    on_epoch: Callable[[dict[str, Any]], None]
    say: Callable[[str], None]


def train(layout: Layout, listener: Listener) -> bool:
    """Train as `work/job.json` says, from the last checkpoint where there is one.

    Returns:
        Whether it is done; False where it was asked to end before, and has saved.

    Raises:
        InputError: the model cannot be loaded, a module is unknown, or training diverges.
        CheckError: the weights on the disk do not give the validation loss of the history.
        ResultsError: the checkpoint was made from another base model.
        OSError: the disk refuses.
    """
    job = Job.read(layout.job)
    settings = job.settings
    args = training_arguments(job, layout)
    first = args.process_index == 0
    if args.world_size != settings.processes:
        raise InputError(
            f"{layout.root} is prepared for --processes {settings.processes}, but {args.world_size} are running: steps "
            "would be of another size. Start as many, or prepare a new folder."
        )
    if first:
        remove_incomplete(layout)
        if SUPERVISED not in os.environ:
            # begun by hand: what an earlier run was asked; where somebody supervises, it may be asked already
            layout.stop.unlink(missing_ok=True)
        layout.result.unlink(missing_ok=True)
    _wait_for_all()
    (enable_full_determinism if settings.deterministic else set_seed)(settings.seed)
    tokenizer = load_tokenizer(job.model)
    model, fingerprints = base_model(job.model, random_weights=settings.random_weights, tokenizer=tokenizer)
    notes = keep_only(model, settings.only)
    if settings.lora is not None:
        model = with_adapters(model, settings.lora)
    if first:
        _same_base(layout, fingerprints)
        for note in notes:
            listener.say(note)
    training, validation = read_chunks(layout.chunks)
    padding = Padding(job.pad, job.chunk, settings.pad_to)
    done = complete_checkpoints(layout.checkpoints)
    history = _history_of(done)
    keeper = Keeper(layout, history, save_minutes=settings.save_minutes, save_steps=settings.save_steps,
                    half=job.precision == "fp16", tell=listener.tell if first else _silent,
                    on_epoch=listener.on_epoch)  # fmt: skip
    tuner = make_tuner(model, args, training, validation, padding, settings, keeper, listener.tell)
    _fit(tuner, keeper, settings, str(done[-1][1]) if done else None, first, listener)
    if keeper.stopped:
        return False
    counts, device = parameter_counts(model), args.device
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    tuner.end()
    if first:
        checked = _finish(layout, job, model, tokenizer, history, validation, padding, listener)
        write_json(layout.result, {
            "rows": history.rows, "steps": read_steps(complete_checkpoints(layout.checkpoints)[-1][1]),
            "checked": checked, "base": fingerprints, "notes": notes, **counts, "peak_gpu_bytes": peak,
            "processes": args.world_size,
        })  # fmt: skip
    return True


def training_arguments(job: Job, layout: Layout) -> TrainingArguments:
    """The settings as the Trainer calls them."""
    settings = job.settings
    cpu = job.device == "cpu"
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return TrainingArguments(
        output_dir=str(layout.checkpoints), learning_rate=settings.learning_rate, weight_decay=settings.weight_decay,
        per_device_train_batch_size=settings.train_batch, per_device_eval_batch_size=settings.eval_batch,
        gradient_accumulation_steps=settings.accumulation, warmup_steps=settings.warmup_steps,
        lr_scheduler_type="constant_with_warmup", num_train_epochs=settings.epochs, optim="adamw_torch_fused",
        max_grad_norm=settings.max_grad_norm, fp16=job.precision == "fp16", bf16=job.precision == "bf16",
        eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True, metric_for_best_model="eval_loss",
        greater_is_better=False, logging_strategy="steps", logging_steps=1, logging_nan_inf_filter=False,
        seed=settings.seed, data_seed=settings.seed, full_determinism=settings.deterministic, use_cpu=cpu,
        ddp_backend="gloo" if cpu and several else None, dataloader_pin_memory=not cpu, remove_unused_columns=False,
        report_to="none", disable_tqdm=True, label_names=["labels"],
    )  # fmt: skip


def make_tuner(
    model: Any,
    args: TrainingArguments,
    training: list[np.ndarray],
    validation: list[np.ndarray],
    padding: Padding,
    settings: Settings,
    keeper: Keeper,
    tell: Callable[[str, int, int], None],
    kind: type[Tuner] = Tuner,
) -> Tuner:
    """The Trainer with everything that watches it."""
    callbacks: list[Any] = [keeper]
    if settings.patience:
        stopper = EarlyStoppingCallback(settings.patience)
        # where training goes on, the count goes on; the Trainer itself would begin at 0 again
        stopper.early_stopping_patience_counter = epochs_since_best(keeper.history.rows)
        callbacks.append(stopper)
    tuner = kind(model, validation, padding, tell, args=args, train_dataset=training, callbacks=callbacks)
    tuner.remove_callback(PrinterCallback)
    keeper.watch(tuner)
    return tuner


def _fit(
    tuner: Tuner, keeper: Keeper, settings: Settings, checkpoint: str | None, first: bool, listener: Listener
) -> None:
    rows = keeper.history.rows
    if not rows:
        try:
            # nothing has been trained that would have to be saved
            loss = tuner.validation_loss(keeper.asked)
        except BrokenOff:
            keeper.stopped = True
            return
        ensure_finite(loss, 0)
        row = keeper.history.close(0, 0, loss, tuner.validation_seconds, tuner.checked_loss)
        if first:
            listener.on_epoch(row)
    done = len(trained_rows(rows)) >= settings.epochs
    if done or (settings.patience and epochs_since_best(rows) >= settings.patience):
        return
    tuner.train(resume_from_checkpoint=checkpoint)


def _finish(layout: Layout, job: Job, model: Any, tokenizer: Any, history: History, validation: list[np.ndarray],
            padding: Padding, listener: Listener) -> dict[str, Any]:  # fmt: skip
    """Write the weights of the best epoch, and compute the loss of some held-out chunks again from what was written.

    Raises:
        CheckError: it is not the loss that these chunks had in training.
    """
    best = best_row(history.rows)
    assert best is not None
    model = load_trained(model, layout.checkpoints / f"checkpoint-{best['step']}")
    if isinstance(model, PeftModel) and job.settings.merge:
        model = model.merge_and_unload()
    # the Trainer has turned it off for itself
    model.config.use_cache = True
    listener.tell("writing", 0, 1)
    write_model(model, tokenizer, layout.work / "final", layout.root, _name_of_base(job.model))
    listener.tell("writing", 1, 1)
    model = load_trained(model, layout.root)
    before = best.get("checked_loss")
    chosen = [validation[place] for place in checked_places(len(validation))]
    if before is None:  # of an epoch that an earlier version trained
        before, chosen = best["validation_loss"], validation
    nll = validation_nll(model, chosen, padding, job.settings.eval_batch, listener.tell)
    loss = float(nll.sum() / predicted_tokens(chosen).sum())
    if not abs(loss - before) <= TOLERANCE * max(1.0, before):  # also where it is no number
        raise CheckError(
            f"The weights of epoch {best['epoch']} give {len(chosen)} held-out chunks a loss of {loss:.5f}, but it was "
            f"{before:.5f} while they were trained; the model in the folder is not to be trusted."
        )
    return {"chunks": len(chosen), "in_training": before, "of_the_files": loss}


def _name_of_base(name: str) -> str:
    from engramscope import bundled

    return str(bundled.folder(name)) if name in bundled.names() else name


def _history_of(done: list[tuple[int, Any]]) -> History:
    if not done:
        return History()
    return History(**json.loads((done[-1][1] / COMPLETE).read_text(encoding="utf-8")))


def _same_base(layout: Layout, fingerprints: dict[str, Any]) -> None:
    if not layout.base.exists():
        write_json(layout.base, fingerprints)
        return
    before = json.loads(layout.base.read_text(encoding="utf-8"))
    wrong = [name for name, value in fingerprints.items() if before[name] != json.loads(json.dumps(value))]
    if wrong:
        raise ResultsError(
            f"{layout.root} was begun from another model of this name: its {' and '.join(wrong)} have changed since. "
            "Give the model that it was begun from, or a new folder."
        )


def _wait_for_all() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def _silent(what: str, done: int, total: int) -> None:
    del what, done, total

"""What happens beside the training steps: the history, checkpoints that a kill cannot harm, and a stop on request."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from engramscope.errors import InputError
from engramscope.finetune.history import History, best_row
from engramscope.finetune.layout import COMPLETE, Layout, checkpoints, complete_checkpoints, sync_files
from engramscope.finetune.tuner import Tuner, anywhere
from engramscope.results.atomic import write_json

#: needed to go on from a checkpoint, not to use its weights
_ONLY_TO_RESUME = ("optimizer.pt", "scheduler.pt", "scaler.pt")
#: what the Trainer pickles beside a checkpoint and nobody reads
_NEVER_READ = "training_args.bin"


class DivergedError(InputError):
    """The loss is no longer a number."""


class Keeper(TrainerCallback):
    """Keeps the history and the checkpoints of one training.

    A checkpoint counts once its history is in it, which is written last; only then are older ones removed. Kept are the
    last one and the one of least validation loss.

    Args:
        layout: where everything lies.
        history: what was done before, where training goes on.
        save_minutes, save_steps: a checkpoint within an epoch after so much; 0 for never.
        half: whether gradients may overflow, so that a step is skipped.
        tell: called with (what, done, total), by the first process only.
        on_epoch: called with the row of every epoch that ends, by the first process only.

    Attributes:
        stopped: training was asked to end, and has saved.
    """

    def __init__(
        self,
        layout: Layout,
        history: History,
        *,
        save_minutes: float,
        save_steps: int,
        half: bool,
        tell: Callable[[str, int, int], None],
        on_epoch: Callable[[dict[str, Any]], None],
    ) -> None:
        self._layout, self.history, self._half = layout, history, half
        self._save_seconds, self._save_steps = save_minutes * 60, save_steps
        self._tell, self._on_epoch = tell, on_epoch
        self._parent = os.getppid()
        self._mark = self._saved = time.monotonic()
        self.stopped = False
        self._tuner: Tuner | None = None

    def watch(self, tuner: Tuner) -> None:
        """Say whose sums are kept."""
        self._tuner = tuner

    def asked(self) -> bool:
        """Whether training is to end: somebody has said so, or whoever started this process is gone."""
        return self._layout.stop.exists() or os.getppid() != self._parent

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """The clock of an epoch runs while its steps do, and its order is its own.

        The Trainer's own word does not reach the order where several processes go on within an epoch.
        """
        self._mark = time.monotonic()
        if self._tuner is not None and self._tuner.order is not None:
            self._tuner.order.set_epoch(state.global_step // _steps_per_epoch(args, state))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Called after every optimiser step with its loss, gradient norm and learning rate."""
        del args, control
        if not logs or "grad_norm" not in logs:
            return
        norm, loss = float(logs["grad_norm"]), float(logs["loss"])
        if not math.isfinite(loss) or not (math.isfinite(norm) or self._half):
            raise DivergedError(
                f"Training diverged: at step {state.global_step} the loss is {loss} and the gradient norm {norm}. "
                "Lower the rate (--set learning_rate=…) or use more warm-up steps; the last checkpoint is still there."
            )
        self.history.add_step(norm, float(logs["learning_rate"]))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Between two steps: time, a checkpoint if one is due, and an end if one is asked for."""
        now = time.monotonic()
        self.history.seconds += now - self._mark
        self._mark = now
        self._tell("training", state.global_step, state.max_steps)
        first = state.is_world_process_zero
        asked = first and self.asked()
        due = first and bool(self._save_seconds) and now - self._saved >= self._save_seconds
        due = due or bool(self._save_steps and state.global_step % self._save_steps == 0)
        asked, due = anywhere(asked, args.device), anywhere(due, args.device)
        if asked:
            self.stopped = control.should_training_stop = True
        # after the last step of an epoch comes its validation, and a checkpoint after that
        if (asked or due) and not self._ends_epoch(args, state):
            control.should_save = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """An epoch that was broken off is not an epoch: no validation."""
        if self.stopped and not self._ends_epoch(args, state):
            control.should_evaluate = control.should_save = False

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **_: Any
    ) -> None:
        """The end of an epoch."""
        del args, control
        assert self._tuner is not None
        assert state.epoch is not None
        ensure_finite(float(metrics["eval_loss"]), round(state.epoch))
        self._add_sums()
        row = self.history.close(
            round(state.epoch), state.global_step, float(metrics["eval_loss"]), self._tuner.validation_seconds,
            self._tuner.checked_loss,
        )  # fmt: skip
        if state.is_world_process_zero:
            self._on_epoch(row)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A checkpoint is on the disk: complete it, and only then remove what is no longer needed."""
        del args, control
        self._add_sums()
        self._saved = time.monotonic()
        if state.is_world_process_zero:
            folder = self._layout.checkpoints / f"checkpoint-{state.global_step}"
            (folder / _NEVER_READ).unlink(missing_ok=True)
            sync_files(folder)
            write_json(folder / COMPLETE, self.history.plain())
            self._remove_others(state.global_step)
        self._mark = time.monotonic()

    def _ends_epoch(self, args: TrainingArguments, state: TrainerState) -> bool:
        return state.global_step % _steps_per_epoch(args, state) == 0

    def _add_sums(self) -> None:
        """Bring the sums of all processes into the history, where every process then has the same."""
        assert self._tuner is not None
        nll, tokens = self._tuner.take_sums()
        self.history.nll, self.history.tokens = self.history.nll + nll, self.history.tokens + tokens

    def _remove_others(self, last: int) -> None:
        best = best_row(self.history.rows)
        kept = {last} | ({int(best["step"])} if best else set())
        for step, path in complete_checkpoints(self._layout.checkpoints):
            if step not in kept:
                shutil.rmtree(path, ignore_errors=True)
            elif step != last:
                for name in _ONLY_TO_RESUME:
                    with suppress(OSError):
                        (path / name).unlink(missing_ok=True)


def _steps_per_epoch(args: TrainingArguments, state: TrainerState) -> int:
    return state.max_steps // int(args.num_train_epochs)


def ensure_finite(validation_loss: float, epoch: int) -> None:
    """Refuse a validation loss that is no number: no epoch could ever be better or worse.

    Raises:
        InputError: says what to do.
    """
    if math.isfinite(validation_loss):
        return
    if epoch:
        raise DivergedError(
            f"Training diverged: after epoch {epoch} the validation loss is {validation_loss}. Lower the rate "
            "(--set learning_rate=…) or use more warm-up steps; the last checkpoint is still there."
        )
    raise InputError(
        f"Before training the validation loss is {validation_loss}; the weights of the model are damaged, or too large "
        "for float32."
    )


def remove_incomplete(layout: Layout) -> None:
    """Remove checkpoints that a kill has left half-written."""
    whole = {step for step, _ in complete_checkpoints(layout.checkpoints)}
    for step, path in checkpoints(layout.checkpoints):
        if step not in whole:
            shutil.rmtree(path, ignore_errors=True)

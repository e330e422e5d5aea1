"""transformers' Trainer with a loss per token that is exact, and a validation that is exact.

The Trainer's own evaluation is a mean of batch means, which weighs a token of a short batch more than one of a long
batch, and it counts the examples twice that fill the last batch of several processes up. Here a loss is always the
summed negative log-likelihood of the predicted tokens over their number.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import PreTrainedModel, Trainer

from engramscope.finetune.chunks import IGNORED, Padding
from engramscope.finetune.loss import summed_nll, token_loss
from engramscope.finetune.order import StepOrder
from engramscope.finetune.weights import load_trained

#: held-out chunks, at most, that the weights in the folder are checked on when training is done
CHECKED = 256
#: (what, done, total)
Tell = Callable[[str, int, int], None]


class BrokenOff(Exception):
    """A validation was not finished, because an end was asked for."""


@torch.no_grad()
def validation_nll(
    model: Any, chunks: Sequence[np.ndarray], padding: Padding, batch: int, tell: Tell | None = None
) -> np.ndarray:
    """Summed NLL (nats) of the predicted tokens of each chunk, `[chunks]`, in the precision of the weights.

    Chunks of like length share a batch, which saves padding and changes no number. The class's own `forward` is
    called, since the one on the object may have been wrapped in half precision for training.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(chunks)), key=lambda index: len(chunks[index]))
    forward, training = type(model).forward, model.training
    model.eval()
    nll = torch.zeros(len(chunks), dtype=torch.float64, device=device)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        made = padding([chunks[index] for index in chosen])
        ids, mask, labels = (made[name].to(device) for name in ("input_ids", "attention_mask", "labels"))
        logits = forward(model, input_ids=ids, attention_mask=mask).logits
        each = [summed_nll(row[None], wanted[None]) for row, wanted in zip(logits, labels, strict=True)]
        nll[torch.tensor(chosen, device=device)] = torch.stack(each).double()
        if tell:
            tell("validation", min(start + batch, len(order)), len(order))
    model.train(training)
    return nll.cpu().numpy()


def predicted_tokens(chunks: Sequence[np.ndarray]) -> np.ndarray:
    """How many tokens of each chunk are predicted: all but its first."""
    return np.asarray([len(chunk) - 1 for chunk in chunks], dtype=np.int64)


def checked_places(count: int) -> np.ndarray:
    """Which of so many held-out chunks the weights in the folder are checked on: at most `CHECKED`, evenly spread."""
    return np.linspace(0, count - 1, min(count, CHECKED)).round().astype(np.int64)


class Tuner(Trainer):
    """The Trainer of a fine-tuning.

    Args:
        model: what is trained.
        validation: the chunks that are held out.
        padding: makes batches.
        tell: called with (what, done, total).
        **options: of `Trainer`.

    Attributes:
        epoch_nll, epoch_tokens: of this process since they were last taken, on the model's device.
        validation_seconds: that the last evaluation took.
        order: of the chunks in an epoch; the keeper tells it which one.
        checked_loss: of the last evaluation, nats per predicted token of the chunks of `checked_places` alone.
    """

    # token_loss divides by the tokens of the whole step already
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel,
        validation: Sequence[np.ndarray],
        padding: Padding,
        tell: Tell | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            model, data_collator=padding, compute_loss_func=token_loss, **{"eval_dataset": validation}, **options
        )
        self._validation, self._padding, self._tell = validation, padding, tell
        self.epoch_nll = torch.zeros((), dtype=torch.float64, device=self.args.device)
        self.epoch_tokens = torch.zeros((), dtype=torch.float64, device=self.args.device)
        self.validation_seconds = 0.0
        self.checked_loss: float | None = None
        self.order: StepOrder | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> StepOrder:
        args = self.args
        chunks: Any = train_dataset if train_dataset is not None else self.train_dataset
        step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.order = StepOrder([len(chunk) for chunk in chunks], step, args.seed)
        return self.order

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # the Trainer's own leaves weights as they are whose names in the file are not those of the modules
        load_trained(self.model if model is None else model, Path(resume_from_checkpoint))

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """A step of the Trainer; what it learned from is added to this epoch's sums."""
        tokens = (inputs["labels"][:, 1:] != IGNORED).sum()
        loss = super().training_step(model, inputs, num_items_in_batch)
        # the Trainer multiplies by the number of processes, because it averages gradients over them
        self.epoch_nll += loss * num_items_in_batch / self.accelerator.num_processes
        self.epoch_tokens += tokens
        return loss

    def take_sums(self) -> tuple[float, float]:
        """NLL and tokens of all processes since they were last taken; every process has to call this."""
        sums = total(torch.stack([self.epoch_nll, self.epoch_tokens]))
        self.epoch_nll.zero_()
        self.epoch_tokens.zero_()
        return float(sums[0]), float(sums[1])

    def validation_loss(self, asked: Callable[[], bool] | None = None) -> float:
        """Validation loss in nats per predicted token; every process computes its share of the chunks.

        Args:
            asked: looked at after every batch: whether to break off. For a single process only, since one of several
                would wait for the others.

        Raises:
            BrokenOff: it was asked for.
        """
        started = time.perf_counter()
        rank, world = self.args.process_index, self.args.world_size
        mine = self._validation[rank::world]

        def tell(what: str, done: int, total: int) -> None:
            if asked is not None and world == 1 and asked():
                raise BrokenOff
            if self._tell and rank == 0:
                self._tell(what, done, total)

        found = torch.zeros(len(self._validation), dtype=torch.float64, device=self.args.device)
        found[rank::world] = torch.from_numpy(
            validation_nll(self.model, mine, self._padding, self.args.per_device_eval_batch_size, tell)
        ).to(found.device)
        nll, tokens = total(found).cpu().numpy(), predicted_tokens(self._validation)
        checked = checked_places(len(nll))
        self.checked_loss = float(nll[checked].sum() / tokens[checked].sum())
        self.validation_seconds = time.perf_counter() - started
        return float(nll.sum() / tokens.sum())

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """The exact validation loss, told to the callbacks as the Trainer tells its own."""
        metrics = {f"{metric_key_prefix}_loss": self.validation_loss()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes, in double precision; itself where there is one."""
    values = values.double().clone()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values


def anywhere(asked: bool, device: torch.device) -> bool:
    """Whether any process asks; every process has to call this."""
    if not (dist.is_available() and dist.is_initialized()):
        return asked
    flag = torch.tensor(int(asked), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)

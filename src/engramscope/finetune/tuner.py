"""transformers' Trainer with a loss per token that is exact, and a validation that is exact.

The Trainer's own evaluation is a mean of batch means, which weighs a token of a short batch more than one of a long
batch, and it counts the examples twice that fill the last batch of several processes up. Here a loss is always the
summed negative log-likelihood of the predicted tokens over their number.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, Trainer

from engramscope.finetune.chunks import IGNORED, Padding
from engramscope.finetune.order import StepOrder

#: (what, done, total)
Tell = Callable[[str, int, int], None]


def summed_nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood in nats, summed over every label that is not -100; labels are shifted here."""
    wanted = labels[:, 1:].reshape(-1)
    return cross_entropy(
        logits[:, :-1].float().reshape(-1, logits.shape[-1]), wanted, ignore_index=IGNORED, reduction="sum"
    )


def token_loss(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """What the Trainer minimises: the summed NLL of a batch over the tokens of the whole optimiser step."""
    count = num_items_in_batch if num_items_in_batch is not None else (labels[:, 1:] != IGNORED).sum()
    return summed_nll(outputs["logits"], labels) / count


@torch.no_grad()
def validation_nll(
    model: Any, chunks: Sequence[np.ndarray], padding: Padding, batch: int, tell: Tell | None = None
) -> tuple[float, int]:
    """Summed NLL (nats) of the predicted tokens of chunks, and their number, in the precision of the weights.

    Chunks of like length share a batch, which saves padding and changes no number. The class's own `forward` is
    called, since the one on the object may have been wrapped in half precision for training.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(chunks)), key=lambda index: len(chunks[index]))
    forward, training = type(model).forward, model.training
    model.eval()
    nll, count = torch.zeros((), dtype=torch.float64, device=device), 0
    for start in range(0, len(order), batch):
        made = padding([chunks[index] for index in order[start : start + batch]])
        count += int((made["labels"] != IGNORED).sum())
        ids, mask, labels = (made[name].to(device) for name in ("input_ids", "attention_mask", "labels"))
        nll += summed_nll(forward(model, input_ids=ids, attention_mask=mask).logits, labels)
        if tell:
            tell("validation", min(start + batch, len(order)), len(order))
    model.train(training)
    return float(nll), count


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

    def _get_train_sampler(self, train_dataset: Any = None) -> StepOrder:
        args = self.args
        chunks: Any = train_dataset if train_dataset is not None else self.train_dataset
        step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return StepOrder([len(chunk) for chunk in chunks], step, args.seed)

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

    def validation_loss(self) -> float:
        """Validation loss in nats per predicted token; every process computes its share of the chunks."""
        started = time.perf_counter()
        rank, world = self.args.process_index, self.args.world_size
        mine = self._validation[rank::world]
        tell = self._tell if rank == 0 else None
        nll, count = validation_nll(self.model, mine, self._padding, self.args.per_device_eval_batch_size, tell)
        sums = total(torch.tensor([nll, float(count)], dtype=torch.float64, device=self.args.device))
        self.validation_seconds = time.perf_counter() - started
        return float(sums[0] / sums[1])

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

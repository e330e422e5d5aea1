"""The training of an editor network: Adam through the edited model, early stopping, and going on at any step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from engramscope.edit.hyper.examples import Example
from engramscope.edit.hyper.gradients import token_pairs
from engramscope.edit.hyper.loss import Outcome, outcome
from engramscope.edit.hyper.network import EditorNetwork
from engramscope.edit.hyper.settings import TrainingSettings
from engramscope.edit.matrices import LinearMap
from engramscope.edit.tokens import rows_of
from engramscope.errors import InputError
from engramscope.models.model import Model

#: columns of the curve
COLUMNS = (
    "step", "train_loss", "train_nll", "train_kl", "gradient_norm", "learning_rate", "loss", "nll", "kl", "efficacy",
    "paraphrase", "kept",
)  # fmt: skip
#: edits whose gradients are noted before the first step
_SHOWN = 64
#: names of the sums over the steps since the last row
_SUMS = ("loss", "nll", "kl", "norm")


@dataclass
class Course:
    """How far a training is.

    Attributes:
        step: steps that are done.
        rows: one for each look at the held-out examples, with the keys of `COLUMNS`; the first is before training.
        sums: over the steps since the last row.
    """

    step: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_SUMS, 0.0))

    @property
    def best(self) -> dict[str, Any] | None:
        """The row with the least loss, the first of several; the untrained network does not count."""
        return min((row for row in self.rows if row["step"]), key=lambda row: row["loss"], default=None)

    @property
    def since_best(self) -> int:
        """How many looks there were since."""
        best = self.best
        return 0 if best is None else sum(row["step"] > best["step"] for row in self.rows)

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@final
class Training:
    """A network, its optimiser, and how far they are.

    Args:
        model: the model whose edits are learned; it is not changed.
        maps: the matrices that are edited.
        network: the network; it is trained in place.
        examples: to learn from.
        held: to see when to stop.
        settings: of the training.
    """

    def __init__(
        self, model: Model, maps: Sequence[LinearMap], network: EditorNetwork, examples: Sequence[Example],
        held: Sequence[Example], settings: TrainingSettings,
    ) -> None:  # fmt: skip
        self.model, self.maps, self.network, self.settings = model, list(maps), network, settings
        self.examples, self.held = list(examples), list(held)[: settings.validation_most]
        self.course = Course()
        rates = {"main": settings.learning_rate, "alpha": settings.alpha_rate}
        self._rates = [rates[name] for name in network.groups()]
        self.optimiser = torch.optim.Adam(
            [{"params": group, "lr": rates[name]} for name, group in network.groups().items()],
            fused=True,  # in one pass over the parameters: on a CPU half a step's time goes by otherwise
        )

    @property
    def done(self) -> bool:
        """Whether nothing more is to be learned."""
        return self.course.step >= self.settings.steps or self.course.since_best >= self.settings.patience

    def run(self, on_look: Callable[[bool], None], on_step: Callable[[int], None]) -> None:
        """Train to the end, or from where it was.

        Args:
            on_look: called after each look at the held-out examples, with whether it was the best.
            on_step: called after each step with its number.

        Raises:
            InputError: the loss is no longer a number.
        """
        while not self.done:
            self._step()
            course, settings = self.course, self.settings
            if course.step % settings.validate_every == 0 or course.step == settings.steps:
                self.look()
                on_look(course.best is course.rows[-1])
            on_step(course.step)

    def show_some(self) -> None:
        """Let the network note the gradients of some examples before it is first used: what it divides by."""
        self.network.train()
        for part in range(max(1, _SHOWN // self.settings.batch)):
            asks = [example.edit for example in self._chosen(part)]
            self.network.observe(token_pairs(self.model, self.maps, rows_of(asks, self.model.device))[0])

    def look(self) -> None:
        """Add a row to the curve.

        Raises:
            InputError: the loss is no longer a number.
        """
        settings, course = self.settings, self.course
        found = list(self._held_outcomes())
        count = sum(len(one.nll) for one in found)
        nll, kl, kept = (
            float(sum(getattr(one, name).sum() for one in found)) / count for name in ("nll", "kl", "kept")
        )
        if not math.isfinite(nll + kl):
            raise InputError(_diverged(f"the loss on held-out edits after step {course.step}"))
        right = torch.cat([one.right for one in found]).float().mean(0).tolist()
        since = course.step - (course.rows[-1]["step"] if course.rows else 0)
        means = {name: value / since if since else None for name, value in course.sums.items()}
        values = (
            course.step, *(means[name] for name in _SUMS), self._rate(course.step) * self._rates[0],
            settings.edit_weight * nll + settings.locality_weight * kl, nll, kl, *right, kept,
        )  # fmt: skip
        course.rows.append(dict(zip(COLUMNS, values, strict=True)))
        course.sums = dict.fromkeys(_SUMS, 0.0)

    def _held_outcomes(self) -> Iterator[Outcome]:
        self.network.eval()
        size = 2 * self.settings.batch
        for start in range(0, len(self.held), size):
            trials = [example.fixed(self.settings.texts) for example in self.held[start : start + size]]
            yield outcome(self.model, self.maps, self.network, trials, learning=False)

    def _step(self) -> None:
        settings, course = self.settings, self.course
        self.network.train()
        self.optimiser.zero_grad(set_to_none=True)
        # what is drawn depends on the seed and the step alone, so that a resumed training draws the same
        draw = np.random.default_rng([settings.seed, 4, course.step])
        for part in range(settings.accumulate):
            chosen = self._chosen(course.step * settings.accumulate + part)
            trials = [example.drawn(settings.texts, settings.mixed, draw) for example in chosen]
            found = outcome(self.model, self.maps, self.network, trials, learning=True)
            loss = found.loss(settings.edit_weight, settings.locality_weight) / settings.accumulate
            loss.backward()
            self._note(loss.detach(), found)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip)
        if not math.isfinite(float(norm)):
            raise InputError(_diverged(f"the gradient of step {course.step + 1}"))
        course.sums["norm"] += float(norm)
        for group, rate in zip(self.optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * self._rate(course.step)
        self.optimiser.step()
        course.step += 1

    def _note(self, loss: Tensor, found: Outcome) -> None:
        share = self.settings.accumulate
        for name, value in (("nll", found.nll.detach().mean()), ("kl", found.kl.detach().mean())):
            self.course.sums[name] += float(value) / share
        self.course.sums["loss"] += float(loss)

    def _rate(self, step: int) -> float:
        """The share of the learning rate that a step has."""
        return min(1.0, 2 * (1 - step / self.settings.steps)) if self.settings.decay else 1.0

    def _chosen(self, part: int) -> list[Example]:
        """The examples of a pass: all in a random order, then all in another one, and so on."""
        size, count = min(self.settings.batch, len(self.examples)), len(self.examples)
        passes = count // size
        order = np.random.default_rng([self.settings.seed, 5, part // passes]).permutation(count)
        start = part % passes * size
        return [self.examples[place] for place in order[start : start + size]]


def _diverged(what: str) -> str:
    return (
        f"Training diverged: {what} is not a number. Lower the rate (--set learning_rate=…), or the weight of the edit "
        "(--set edit_weight=…)."
    )

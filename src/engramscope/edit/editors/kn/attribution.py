"""Integrated gradients of an answer's probability with respect to the neurons of one layer after another."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from engramscope.edit.passes import TOKENS, from_block, logits_where, read_until, wide
from engramscope.edit.tokens import Ask, Rows, rows_of, scored_nll
from engramscope.models.hooks import Tap, taps
from engramscope.models.model import Model
from engramscope.models.site import Port

Points = Literal["right", "midpoint", "linspace"]


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and the answer whose probability is attributed.

    Attributes:
        ask: the prompt, and the tokens of the answer.
        same_position: score every token of the answer at the last token of the prompt and take the mean of the
            probabilities (the release); otherwise the probability is that of the whole answer, teacher-forced.
    """

    ask: Ask
    same_position: bool = False

    @property
    def position(self) -> int:
        """Where the neurons are: at the last token of the prompt."""
        return len(self.ask.prompt) - 1

    def rows(self, count: int, device: torch.device) -> Rows:
        """The question in so many rows."""
        target = self.ask.target[:1] if self.same_position else self.ask.target
        return rows_of([Ask(self.ask.prompt, target)] * count, device)


@dataclass(frozen=True, slots=True)
class Attribution:
    """What the neurons of one layer contribute.

    Attributes:
        neurons: A of each [d_mlp], in units of probability.
        at_activation, at_zero: the answer's probability with the neurons as they are, and with all of them at 0.
    """

    neurons: Float[Tensor, " d_mlp"]
    at_activation: float
    at_zero: float

    @property
    def gap(self) -> float:
        """|Σ A − (P(w) − P(0))|: 0 for infinitely many points."""
        return abs(float(self.neurons.double().sum()) - (self.at_activation - self.at_zero))


def points_of(rule: Points, steps: int) -> Float[Tensor, " steps"]:
    """Where on the way from 0 to 1 the gradient is taken; each point has the weight 1/steps.

    Args:
        rule: "right" is s/M for s = 1..M, the sum of the paper; "midpoint" is (s − ½)/M, whose error falls with M² and
            not with M; "linspace" is (s − 1)/(M − 1), 0 and 1 included, as the release has it.
        steps: M.
    """
    numbers = torch.arange(1, steps + 1, dtype=torch.float64)
    if rule == "linspace":
        return (numbers - 1) / max(steps - 1, 1)
    return (numbers - (0.5 if rule == "midpoint" else 0.0)) / steps


def attributions(
    model: Model, question: Question, ports: list[Port], points: Float[Tensor, " steps"],
    progress: Callable[[int], None] | None = None,
) -> list[Attribution]:  # fmt: skip
    """A(l, j) = w_j · (1/M) Σ_s ∂P(answer | neurons of layer l at α_s w) / ∂w_j, one layer at a time.

    All neurons of one layer at the last token of the prompt are scaled together. The gradient is taken at the scaled
    activation. The points are rows of one batch; of the model only the blocks from the layer on are run. Gradients
    are those of log P, times P, so that small probabilities do not vanish in half precision.

    Args:
        model: the model, frozen.
        question: the prompt and the answer.
        ports: where the neurons of each layer are read and written.
        points: α.
        progress: called with the number of layers that are done.
    """
    rows = question.rows(1, model.device)
    hidden, neurons = _recorded(model, rows, ports, question.position)
    whole = float(_log_probability(model, question, rows, 0, hidden[0]).exp())
    found: list[Attribution] = []
    for layer, port in enumerate(ports):
        if progress:
            progress(layer)
        # the last row says what the answer's probability is without the layer's neurons
        alphas = torch.cat([points, torch.zeros(1, dtype=points.dtype)])
        total, zero = torch.zeros_like(neurons[layer]), math.nan
        done = 0
        for part in alphas.to(model.device, neurons[layer].dtype).split(max(1, TOKENS // rows.ids.shape[1])):
            scaled = (part[:, None] * neurons[layer]).requires_grad_()
            value, gradient = _gradient(model, question, port, layer, hidden[layer], scaled)
            wanted = len(points) - done
            total += gradient[:wanted].sum(0)
            zero = float(value[-1])
            done += len(part)
        found.append(Attribution((neurons[layer] * total / len(points)).cpu(), whole, zero))
    if progress:
        progress(len(ports))
    return found


def _recorded(model: Model, rows: Rows, ports: list[Port], position: int) -> tuple[list[Tensor], list[Tensor]]:
    """What comes into every block [1, seq, d_model], and its neurons at a position [d_mlp]."""
    hidden: list[Tensor] = []
    neurons: list[Tensor] = []

    def keep(value: Tensor) -> None:
        hidden.append(value.detach().clone())

    def keep_neurons(value: Tensor) -> None:
        neurons.append(wide(value[0, position].detach()).clone())

    reads: list[tuple[Port, Tap]] = []
    for layer, port in enumerate(ports):
        into = model.site("resid_pre", layer)
        assert isinstance(into, Port)
        reads += [(into, keep), (port, keep_neurons)]
    read_until(model, rows.ids, rows.mask, reads)
    return hidden, neurons


def _gradient(
    model: Model, question: Question, port: Port, layer: int, hidden: Tensor, scaled: Float[Tensor, "points d_mlp"]
) -> tuple[Float[Tensor, " points"], Float[Tensor, "points d_mlp"]]:
    """P of the answer in each row, and its gradient with respect to that row's neurons."""
    place = question.position

    def write(value: Tensor) -> Tensor:
        return torch.cat([value[:, :place], scaled[:, None].to(value), value[:, place + 1 :]], 1)

    rows = question.rows(len(scaled), model.device)
    log = _log_probability(model, question, rows, layer, hidden.expand(len(scaled), -1, -1), [(port, write)])
    (gradient,) = torch.autograd.grad(log.sum(), scaled)
    value = log.detach().exp()
    return value, value[:, None] * gradient


def _log_probability(
    model: Model, question: Question, rows: Rows, layer: int, hidden: Tensor, changes: Sequence[tuple[Port, Tap]] = ()
) -> Float[Tensor, " rows"]:
    with from_block(model, layer, hidden), taps(model, changes, copies=False):
        logits = logits_where(model, rows.ids, rows.mask, rows.labels != -100)
    count = len(question.ask.target)
    if not question.same_position:
        return -count * scored_nll(logits, rows)
    tokens = torch.tensor(question.ask.target, device=logits.device)
    return wide(logits).log_softmax(-1)[:, tokens].logsumexp(-1) - math.log(count)

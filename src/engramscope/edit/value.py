"""What has to come out at the subject's last token so that the model states a new fact, found by gradient descent."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from engramscope.edit._base import Progress
from engramscope.edit.frozen import frozen
from engramscope.edit.passes import logits_where, wide
from engramscope.edit.tails import Tails, tails_of
from engramscope.edit.tokens import Ask, Rows, rows_of, scored_nll
from engramscope.errors import InputError
from engramscope.models.hooks import Tap, taps
from engramscope.models.model import Model
from engramscope.models.site import Port

#: padded tokens of the rows that are optimised side by side
TOKENS = 4096


@dataclass(frozen=True, slots=True)
class ValueSettings:
    """How a value is optimised.

    Attributes:
        steps: forwards, at most; the last one only evaluates.
        lr: learning rate of Adam.
        clamp: |delta| is at most so many times |v0|.
        kl: weight of the divergence on "{subject} is a".
        decay: weight of |delta| / |v0|².
        stop: a loss below this ends it.
    """

    steps: int = 20
    lr: float = 0.5
    clamp: float = 4.0
    kl: float = 0.0625
    decay: float = 0.5
    stop: float = 0.05


@dataclass(frozen=True, slots=True)
class Wanted:
    """One fact to optimise a value for.

    Attributes:
        asks: its prompts with the target, each with the position that is changed; the first is the prompt as it stands.
        essence: a text about the subject whose continuation is to stay as it is, with the subject's last token.
    """

    asks: tuple[Ask, ...]
    essence: Ask


@dataclass(slots=True)
class Found:
    """What came out for one fact.

    Attributes:
        delta: what is added to the value [d_model], float32.
        start: the value before, v0, on the prompt as it stands [d_model].
        losses: total loss at every forward; the last belongs to `delta`.
        nll, kl, decay: the terms of the last loss.
        clamped: the last step ended on the norm ball.
    """

    delta: Tensor
    start: Tensor
    losses: list[float] = field(default_factory=list)
    nll: float = 0.0
    kl: float = 0.0
    decay: float = 0.0
    clamped: bool = False

    def said(self) -> dict[str, Any]:
        """What the diagnostics say about it."""
        return {
            "losses": self.losses, "nll": self.nll, "kl": self.kl, "decay": self.decay, "clamped": self.clamped,
            "delta_over_value": float(self.delta.norm() / self.start.norm()),
        }  # fmt: skip


def optimise_values(
    model: Model, port: Port, layer: int, wanted: Sequence[Wanted], settings: ValueSettings, *,
    tokens: int = TOKENS, progress: Progress | None = None,
) -> list[Found]:  # fmt: skip
    """For each fact the vector that, added at one position, makes the model state it.

    Minimises, over δ added to the value of a port at one position of every row (the subject's last token),

        mean over rows of (1/n) Σ −log P(target_i | row, target_<i)
        + kl · KL(P_δ ‖ P_0) at the subject's last token of "{subject} is a"
        + decay · |δ| / |v0|²

    by Adam from δ = 0; after every step δ is projected onto |δ| ≤ clamp · |v0|. Facts share a batch, but nothing else:
    each has the δ that it would have alone.

    Args:
        model: the model; nothing in it changes.
        port: where δ is added: the output of a module of the block `layer`.
        layer: that block; those below are computed once.
        wanted: the facts.
        settings: of the optimisation.
        tokens: padded tokens of a batch, at most, unless one fact alone has more.
        progress: called with (what, done, total), in steps.

    Raises:
        InputError: a loss is not a number.

    Source: Meng et al. 2022, ROME, equation 4, with the normalisation of the released code (rome/compute_v.py); the
    decay there is |δ|/|v0|², and the divergence is read at the subject's last token.
    """
    found: list[Found | None] = [None] * len(wanted)
    groups = _grouped(wanted, tokens)
    with frozen(model.hf):
        for number, chosen in enumerate(groups):

            def tell(step: int, before: int = number * settings.steps) -> None:
                if progress:
                    progress("steps to the new values", before + step, len(groups) * settings.steps)

            part = _optimise(model, port, layer, [wanted[index] for index in chosen], settings, tell)
            for index, one in zip(chosen, part, strict=True):
                found[index] = one
            tell(settings.steps)
    return [one for one in found if one is not None]


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """Rows of several facts; a fact's last row is its essence."""

    tails: Tails
    owner: Int[Tensor, " rows"]
    essence: Bool[Tensor, " rows"]
    original: Float[Tensor, "rows vocab"]

    def only(self, keep: Bool[Tensor, " rows"]) -> _Batch:
        original = self.original[keep[self.essence].to(self.original.device)]
        return _Batch(self.tails.only(keep), self.owner[keep], self.essence[keep], original)


def _grouped(wanted: Sequence[Wanted], tokens: int) -> list[list[int]]:
    """Facts in batches, like lengths together."""
    longest = [max(len(ask.prompt) + len(ask.target) - 1 for ask in one.asks) for one in wanted]
    groups: list[list[int]] = []
    rows = 0
    for index in sorted(range(len(wanted)), key=lambda index: -longest[index]):
        own = len(wanted[index].asks) + 1
        if groups and (rows + own) * longest[groups[-1][0]] <= tokens:
            groups[-1].append(index)
            rows += own
        else:
            groups.append([index])
            rows = own
    return groups


def _optimise(
    model: Model, port: Port, layer: int, wanted: Sequence[Wanted], settings: ValueSettings,
    tell: Callable[[int], None],
) -> list[Found]:  # fmt: skip
    batch, found = _prepared(model, port, layer, wanted)
    sizes = [float(one.start.norm()) for one in found]
    deltas = [torch.zeros_like(one.start, requires_grad=True) for one in found]
    steppers = [torch.optim.Adam([delta], lr=settings.lr) for delta in deltas]
    active = list(range(len(wanted)))
    for step in range(settings.steps):
        tell(step)
        total, terms = _losses(model, port, layer, batch, deltas, sizes, settings)
        for index in active:
            one = found[index]
            one.losses.append(_number(total[index], step))
            one.nll, one.kl, one.decay = (float(term[index].detach()) for term in terms)
        going = [index for index in active if found[index].losses[-1] >= settings.stop]
        if step == settings.steps - 1 or not going:
            break
        for index, gradient in zip(
            going, torch.autograd.grad(total[going].sum(), [deltas[index] for index in going]), strict=True
        ):
            deltas[index].grad = gradient
            steppers[index].step()
            found[index].clamped = _project(deltas[index], settings.clamp * sizes[index])
        if len(going) < len(active):
            keep = torch.isin(batch.owner, torch.tensor(going, device=batch.owner.device))
            batch, active = batch.only(keep), going
    return [replace(one, delta=delta.detach().float()) for one, delta in zip(found, deltas, strict=True)]


def _number(loss: Tensor, steps: int) -> float:
    """The loss; one that is no number is below no bound, and would pass for one that is low enough."""
    found = float(loss.detach())
    if not math.isfinite(found):
        raise InputError(
            f"The loss of a new value is not a number after {steps} steps. Load the model in float32, or choose a "
            "smaller learning rate (option 'lr'); where it happens in float32 before the first step, the model is "
            "damaged."
        )
    return found


@torch.no_grad()
def _project(delta: Tensor, radius: float) -> bool:
    """Put a vector back onto the ball; whether it had left it."""
    norm = float(delta.norm())
    if norm <= radius:
        return False
    delta.mul_(radius / norm)
    return True


@torch.no_grad()
def _prepared(model: Model, port: Port, layer: int, wanted: Sequence[Wanted]) -> tuple[_Batch, list[Found]]:
    """Rows, what enters the block, the values before, and the distributions that are to stay."""
    asks = [ask for one in wanted for ask in (*one.asks, one.essence)]
    owner = torch.tensor([index for index, one in enumerate(wanted) for _ in range(len(one.asks) + 1)])
    ends = torch.tensor([len(one.asks) + 1 for one in wanted]).cumsum(0)
    essence = torch.zeros(len(asks), dtype=torch.bool)
    essence[ends - 1] = True
    rows, owner, essence = rows_of(asks, model.device), owner.to(model.device), essence.to(model.device)
    rows.labels[essence] = -100
    first = torch.cat([torch.zeros(1, dtype=torch.long), ends[:-1]])
    entered: list[Tensor] = []
    values: list[Tensor] = []

    def enter(value: Tensor) -> None:
        entered.append(value.clone())

    def read(value: Tensor) -> None:
        places = first.to(value.device)
        values.append(wide(value[places, rows.subject.to(value.device)[places]]))

    below = model.site("resid_pre", layer)
    assert isinstance(below, Port)
    kept = _at_essence(rows, essence)
    chosen = kept | (rows.labels != -100)
    with taps(model, [(below, enter), (port, read)], copies=False):
        logits = wide(logits_where(model, rows.ids, rows.mask, chosen))
    original = logits[kept[chosen].to(logits.device)].log_softmax(-1)
    tails = tails_of(model, layer, rows, entered[0], chosen, logits)
    found = [Found(torch.zeros_like(value), value) for value in values[0]]
    return _Batch(tails, owner, essence, original), found


def _losses(
    model: Model, port: Port, layer: int, batch: _Batch, deltas: Sequence[Tensor], sizes: Sequence[float],
    settings: ValueSettings,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:  # fmt: skip
    """The loss of every fact [facts] and its terms; 0 for a fact that has no row left."""
    rows, added = batch.tails.rows, torch.stack(list(deltas))
    scored, kept = rows.labels != -100, _at_essence(rows, batch.essence)
    change = _adding(rows.subject, added[batch.owner.to(added.device)])
    logits = batch.tails.logits(model, layer, [(port, change)], scored | kept)
    # which of the chosen positions are scored, and which are those of the essence
    is_kept = kept[scored | kept].to(logits.device)
    here = Rows(rows.ids, rows.mask, rows.labels.to(logits.device), rows.subject)
    owner, essence = batch.owner.to(logits.device), batch.essence.to(logits.device)
    of_rows = scored_nll(logits[~is_kept], here)[~essence]
    count = torch.bincount(owner[~essence], minlength=len(deltas)).clamp(min=1)
    nll = torch.zeros(len(deltas), dtype=logits.dtype, device=logits.device)
    nll = nll.index_add(0, owner[~essence], of_rows) / count
    after, before = logits[is_kept].log_softmax(-1), batch.original
    divergence = (after.exp() * (after - before)).sum(-1)
    kl = settings.kl * torch.zeros_like(nll).index_add(0, owner[essence], divergence)
    norms = torch.stack([delta.norm() for delta in deltas]).to(nll.device)
    decay = settings.decay * norms / torch.tensor(sizes, dtype=nll.dtype, device=nll.device).square()
    return nll + kl + decay, (nll, kl, decay)


def _at_essence(rows: Rows, essence: Bool[Tensor, " rows"]) -> Bool[Tensor, "rows seq"]:
    """The subject's last token of the rows whose continuation is to stay."""
    where = torch.zeros_like(rows.mask, dtype=torch.bool)
    where[essence, rows.subject[essence]] = True
    return where


def _adding(positions: Int[Tensor, " rows"], added: Float[Tensor, "rows d_model"]) -> Tap:
    """Add a vector at one position of every row."""

    def tap(value: Tensor) -> Tensor:
        lines = torch.arange(len(positions), device=value.device)
        places = positions.to(value.device)
        new = wide(value[lines, places]) + added.to(value.device)
        return value.index_put((lines, places), new.to(value.dtype))

    return tap

"""Fine-tuning of one matrix until a model states facts: what the editors FT and FT+L share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from engramscope.edit._base import Editor, EditorOptions, Progress
from engramscope.edit.delta import Delta, Dense
from engramscope.edit.edit import Edit
from engramscope.edit.frozen import frozen
from engramscope.edit.layers import GPT2_LARGE, GPT2_MEDIUM, GPT2_XL, GPTJ
from engramscope.edit.matrices import LinearMap, down_projection
from engramscope.edit.outcome import stated
from engramscope.edit.passes import from_block, logits_where, read_until, wide
from engramscope.edit.tokens import Ask, Rows, encode_facts, rows_of, scored_nll
from engramscope.errors import InputError
from engramscope.models.hooks import Hook, attached
from engramscope.models.model import Model
from engramscope.models.site import Port
from engramscope.records.fact import Fact

Objective = Literal["all_tokens", "last_prompt_token"]

#: models of which settings are published, and the rate of all of them; the neurons of GPT-2 XL
_PUBLISHED = {GPT2_MEDIUM, GPT2_LARGE, GPT2_XL, GPTJ}
_RATE, _WIDTH = 5e-4, 6400


class DescentOptions(EditorOptions):
    """Options of FT and FT+L; the defaults are the published settings, but for the objective and the bias.

    A step of Adam moves each weight by about the learning rate, and so the output of the projection by up to the rate
    times the sum of |neurons|: a narrow model needs larger steps to get as far in 25 of them. That is why the rate
    that was published for an MLP of 6,400 neurons (GPT-2 XL) is scaled by the root of the width for models of which
    nothing is published; on the bundled models, 1,024 and 640 neurons wide, this is what it takes.

    Attributes:
        layer: whose down projection is trained, counted from 0; None for the published one, or a default.
        lr: learning rate of Adam; None for the published 5e-4, times √(6400 / neurons of the MLP) in other models.
        steps: passes over the facts, at most.
        stop: a batch whose mean loss is below this makes no step; when the mean over all facts is, the edit is done.
        objective: "all_tokens" is teacher forcing: each token of the target is predicted from those before it.
            "last_prompt_token" asks the last token of the prompt for every token of the target, as the release does.
            They are the same for a target of one token.
        bias: train the projection's bias, too, where it has one.
    """

    layer: int | None = Field(default=None, ge=0)
    lr: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    steps: int = Field(default=25, ge=1)
    stop: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    objective: Objective = "all_tokens"
    bias: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """Facts of one step.

    Attributes:
        rows: prompts, with labels where the model is asked.
        targets: for `last_prompt_token`, the target's tokens [rows, longest], -100 beyond its end; None for
            `all_tokens`, where the labels say everything.
        hidden: what comes into the block that is trained, which the training does not change.
    """

    rows: Rows
    targets: Int[Tensor, "rows longest"] | None
    hidden: Float[Tensor, "rows seq d_model"]


@dataclass(frozen=True, slots=True)
class Descent:
    """What came of it.

    Attributes:
        deltas: name of a parameter -> what is added.
        losses: loss of every fact at each pass, and after the last [passes + 1][facts].
        steps: steps of Adam that were made.
    """

    deltas: dict[str, Delta]
    losses: list[list[float]]
    steps: int


def edit_by_descent(
    editor: Editor, model: Model, facts: list[Fact], seed: int, progress: Progress | None, *, options: DescentOptions,
    layer: int, radius: float | None = None, batch: int = 1, notes: Sequence[str] = (),
) -> Edit:  # fmt: skip
    """The edit of FT, or of FT+L where a radius is given.

    Args:
        editor: the editor.
        model: the model.
        facts: sound ones.
        seed: nothing is drawn; it is kept with the edit.
        progress: called with (what, done, total).
        options: its options.
        layer: whose down projection is trained.
        radius: how far each weight may move.
        batch: facts of one step.
        notes: sentences that the edit is to carry.

    Raises:
        InputError: a fact does not go with the model, or the loss is not a number.
    """
    linear = down_projection(model, layer)
    lr, about_rate = rate_of(model, linear, options.lr)
    asks = [templates[0] for templates in encode_facts(model, facts)]
    with frozen(model.hf):
        before = stated(model, asks)
        found = descend(
            model, layer, batches_of(model, layer, asks, batch, options.objective), lr=lr, steps=options.steps,
            stop=options.stop, bias=options.bias, radius=radius, what=f"{editor.name}: passes", progress=progress,
        )  # fmt: skip
        with added(linear, {name.rpartition(".")[2]: delta.dense() for name, delta in found.deltas.items()}):
            after = stated(model, asks)
    change = {name: delta.norm() / _norm(model, name) for name, delta in found.deltas.items()}
    entries = [
        {
            "id": fact.id, "layer": layer, "loss": [losses[index] for losses in found.losses], "steps": found.steps,
            "probability_before": before[index].probability, "probability_after": after[index].probability,
            "most_probable_after": after[index].most_probable, "stated": after[index].stated,
            "relative_change": change[linear.name], "lr": lr, "radius": radius,
        }
        for index, fact in enumerate(facts)
    ]  # fmt: skip
    said = [*notes, *about_rate, *_unreached(facts, found.losses[-1], options)]
    diagnostics = {"layer": layer, "relative_change": change, "lr": lr, "radius": radius, "facts": entries}
    return editor.edit(model, facts, found.deltas, seed, diagnostics=diagnostics, notes=said)


def rate_of(model: Model, linear: LinearMap, given: float | None) -> tuple[float, list[str]]:
    """The learning rate, and a sentence about it where nobody chose it."""
    if given is not None:
        return given, []
    if (model.anatomy.model_type, model.anatomy.n_layers) in _PUBLISHED:
        return _RATE, []
    rate = float(f"{_RATE * math.sqrt(_WIDTH / linear.n_in):.2g}")
    return rate, [
        f"No learning rate is published for {model.name}: {rate:g} was used, the {_RATE:g} of GPT-2 XL scaled by the "
        f"root of the width ({_WIDTH} neurons there, {linear.n_in} here)."
    ]


def settled_descent(model: Model, options: DescentOptions, layer: int) -> dict[str, Any]:
    """The options that an edit of this layer is computed with.

    Raises:
        SiteError: its MLP has no single down projection.
    """
    rate, _ = rate_of(model, down_projection(model, layer), options.lr)
    return {"layer": layer, "lr": rate}


def batches_of(model: Model, layer: int, asks: Sequence[Ask], size: int, objective: Objective) -> list[Batch]:
    """The facts in batches, in their order, each with what comes into the block that is trained.

    Args:
        model: the model, frozen.
        layer: the block.
        asks: prompts and targets.
        size: rows of a batch.
        objective: what is asked where.
    """
    found: list[Batch] = []
    for start in range(0, len(asks), size):
        chosen = asks[start : start + size]
        targets = None
        rows = rows_of(chosen, model.device)
        if objective == "last_prompt_token":
            rows = rows_of([Ask(ask.prompt, ask.target[:1]) for ask in chosen], model.device)
            longest = max(len(ask.target) for ask in chosen)
            padded = [(*ask.target, *(-100,) * (longest - len(ask.target))) for ask in chosen]
            targets = torch.tensor(padded, device=model.device)
        kept: list[Tensor] = []

        def keep(value: Tensor, kept: list[Tensor] = kept) -> None:
            kept.append(value.detach().clone())

        port = model.site("resid_pre", layer)
        assert isinstance(port, Port)
        read_until(model, rows.ids, rows.mask, [(port, keep)])
        found.append(Batch(rows, targets, kept[0]))
    return found


def losses_of(model: Model, layer: int, batch: Batch) -> Float[Tensor, " rows"]:
    """Mean −log P per token of each fact's target, in nats, ≥ 0; gradients flow where torch records them."""
    rows = batch.rows
    with from_block(model, layer, batch.hidden):
        logits = logits_where(model, rows.ids, rows.mask, rows.labels != -100)
    if batch.targets is None:
        return scored_nll(logits, rows)
    scored = batch.targets != -100
    each = -wide(logits).log_softmax(-1).gather(1, batch.targets.clamp(min=0))
    return (each * scored).sum(1) / scored.sum(1)


def descend(
    model: Model, layer: int, batches: Sequence[Batch], *, lr: float, steps: int, stop: float, bias: bool = False,
    radius: float | None = None, what: str = "passes", progress: Progress | None = None,
) -> Descent:  # fmt: skip
    """Adam on one layer's down projection, kept apart from the model.

    What is trained is Δ in W + Δ, in float32 (float64 for a model in float64), which starts at 0: W itself is never
    touched, and Adam's updates do not depend on W. With a radius, Δ is put back into [−radius, radius] after each step.
    Memory: Δ, its gradient and Adam's two moments, each of the size of W; activations from the block on.

    Args:
        model: the model, frozen.
        layer: the block.
        batches: the facts; each makes a step in each pass, but for one whose mean loss is below `stop`.
        lr: learning rate; betas 0.9 and 0.999, eps 1e-8, no weight decay.
        steps: passes, at most.
        stop: the descent ends when the mean loss over the facts is below it.
        bias: train the bias, too.
        radius: of the L∞ ball.
        what: name of the work for `progress`.
        progress: called with (what, done, total).

    Raises:
        InputError: the loss is not a number.
    """
    linear = down_projection(model, layer)
    trained = {"weight": linear.weight, **({"bias": b} if bias and (b := _bias(linear)) is not None else {})}
    parts = {name: torch.zeros_like(wide(value), requires_grad=True) for name, value in trained.items()}
    # fused: the plain form needs two more tensors of the size of the matrix in each step
    adam = torch.optim.Adam(list(parts.values()), lr=lr, fused=True)
    curve: list[list[float]] = []
    made = moved = 0
    with added(linear, parts):
        for step in range(steps):
            if progress:
                progress(what, step, steps)
            now: list[float] = []
            moved = 0
            for batch in batches:
                each = losses_of(model, layer, batch)
                loss = each.mean()
                now += _numbers(each, lr, made + moved)
                if loss < stop:
                    continue
                adam.zero_grad(set_to_none=True)
                loss.backward()
                adam.step()
                moved += 1
                if radius is not None:
                    _clamp(parts, radius)
            curve.append(now)
            made += moved
            if sum(now) / len(now) < stop:
                break
        if moved:
            curve.append(_numbers(torch.tensor(_evaluated(model, layer, batches)), lr, made))
        adam.zero_grad(set_to_none=True)
        del adam  # its moments would be held while the deltas are rounded
    if progress:
        progress(what, steps, steps)
    deltas: dict[str, Delta] = {
        f"{linear.path}.{name}": _stored(trained[name], part, radius) for name, part in parts.items()
    }
    return Descent(deltas, curve, made)


@contextmanager
def added(linear: LinearMap, parts: dict[str, Tensor]) -> Iterator[None]:
    """The projection computes x (W + Δ) + b + Δb for the time of a context, what is added in the width of Δ.

    Args:
        linear: the projection.
        parts: "weight" -> Δ as the weight is stored, "bias" -> Δb where there is one.
    """
    given: list[Tensor] = []

    def keep(value: Tensor) -> None:
        given[:] = [value]

    def add(value: Tensor) -> Tensor:
        weight = parts["weight"].to(value.device)
        x = given.pop().to(weight.dtype)
        more = x @ (weight if linear.stored_as_written else weight.T)
        if "bias" in parts:
            more = more + parts["bias"].to(value.device)
        return (value.to(weight.dtype) + more).to(value.dtype)

    with attached([Hook(linear.module, "input", keep), Hook(linear.module, "output", add)]):
        yield


@torch.no_grad()
def inside_ball(before: Tensor, delta: Tensor, radius: float) -> Tensor:
    """A delta that leaves no weight outside [W − radius, W + radius], neither itself nor rounded into the sum W + Δ.

    Args:
        before: W, in its own dtype.
        delta: Δ in float32, of the same shape.
        radius: of the ball, > 0.

    Returns:
        Δ, nearer to 0 by the last bits of W where W + Δ in the dtype of W would lie outside.
    """
    found = delta.clamp(-_floor(radius), _floor(radius))
    if before.dtype not in (torch.float32, torch.float64):
        return found  # such a weight keeps its value, and the delta is applied beside it
    # a few rows at a time: the exact differences need several tensors
    size = max(1, 2**18 // max(1, math.prod(before.shape[1:])))
    for old, new in zip(before.split(size), found.split(size), strict=True):
        while True:
            after = old + new.to(old.dtype)
            outside = (after.double() - old.double()).abs() > radius
            if not outside.any():
                break
            largest = torch.stack([old, after, new.to(old.dtype)]).abs().amax(0).float()
            spacing = torch.nextafter(largest, torch.full_like(largest, math.inf)) - largest
            new[outside] = ((new.abs() - spacing).clamp(min=0) * new.sign())[outside]
    return found


def _stored(before: Tensor, part: Tensor, radius: float | None) -> Dense:
    delta = part.detach().float()
    return Dense((delta if radius is None else inside_ball(before, delta, radius)).cpu())


@torch.no_grad()
def _clamp(parts: dict[str, Tensor], radius: float) -> None:
    for part in parts.values():
        part.clamp_(-_floor(radius), _floor(radius))


def _floor(radius: float) -> float:
    """The largest float32 that is not above a number."""
    near = torch.tensor(radius, dtype=torch.float32)
    return float(near if float(near) <= radius else torch.nextafter(near, torch.tensor(-math.inf)))


@torch.no_grad()
def _evaluated(model: Model, layer: int, batches: Sequence[Batch]) -> list[float]:
    return [loss for batch in batches for loss in losses_of(model, layer, batch).tolist()]


def _numbers(losses: Tensor, lr: float, steps: int) -> list[float]:
    found: list[float] = losses.detach().tolist()
    if not all(map(math.isfinite, found)):
        raise InputError(
            f"The loss is not a number after {steps} steps with the learning rate {lr:g}. Choose a smaller learning "
            "rate; where it happens before the first step, load the model in float32."
        )
    return found


def trained_names(model: Model, layer: int, *, bias: bool) -> tuple[str, ...]:
    """Names of the parameters that are trained: a layer's down projection, and its bias if asked for and there."""
    linear = down_projection(model, layer)
    return (linear.name, *((f"{linear.path}.bias",) if bias and _bias(linear) is not None else ()))


def _bias(linear: LinearMap) -> Tensor | None:
    bias = linear.module.bias
    return bias if isinstance(bias, Tensor) else None


def _norm(model: Model, name: str) -> float:
    # a bias may be all zeros
    norm = torch.linalg.vector_norm(wide(model.hf.get_parameter(name).detach()))
    return max(float(norm), torch.finfo(torch.float32).tiny)


def _unreached(facts: Sequence[Fact], losses: Sequence[float], options: DescentOptions) -> list[str]:
    enough = options.stop or DescentOptions().stop
    left = [(fact, loss) for fact, loss in zip(facts, losses, strict=True) if loss >= enough]
    if not left or sum(losses) / len(losses) < options.stop:
        return []
    named = ", ".join(f"{fact.id or repr(fact.prompt)} ({loss:.2g})" for fact, loss in left[:5])
    more = f" and {len(left) - 5} more" if len(left) > 5 else ""
    return [
        f"{len(left)} of {len(facts)} facts did not get to a loss below {enough:g} in {options.steps} passes: "
        f"{named}{more}."
    ]

"""What an editor network is trained on: how well the edited model states the target, and how little else changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from engramscope.edit.frozen import frozen
from engramscope.edit.hyper.factors import edited
from engramscope.edit.hyper.gradients import token_pairs
from engramscope.edit.hyper.network import EditorNetwork, condition_of
from engramscope.edit.matrices import LinearMap
from engramscope.edit.tokens import Ask, Rows, logits_of, rows_of, target_nll
from engramscope.models.model import Model


@dataclass(frozen=True, slots=True)
class Trial:
    """One edit, and the prompts that it is judged on.

    Attributes:
        edit: prompt and target; its loss gives the gradient that the network is shown.
        scored: prompts after which the edited model is to give the target.
        local: texts on which it is to stay as it was; the token asked for last takes no part.
    """

    edit: Ask
    scored: tuple[Ask, ...]
    local: tuple[Ask, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What edits did.

    Attributes:
        nll: −(1/n) Σ log P(target_i | …) after the edit, mean over the scored prompts, nats [edits].
        kl: KL(before ‖ after), mean over the tokens of the local texts, nats [edits].
        right: scored prompts whose whole target is the most probable one, token by token [edits, scored].
        kept: share of tokens of the local texts after which the most probable token is the same [edits].
    """

    nll: Float[Tensor, " edits"]
    kl: Float[Tensor, " edits"]
    right: Bool[Tensor, "edits scored"]
    kept: Float[Tensor, " edits"]

    def loss(self, edit_weight: float, locality_weight: float) -> Tensor:
        """edit_weight · NLL + locality_weight · KL, mean over the edits."""
        return edit_weight * self.nll.mean() + locality_weight * self.kl.mean()


def outcome(
    model: Model, maps: Sequence[LinearMap], network: EditorNetwork, trials: Sequence[Trial], *, learning: bool
) -> Outcome:
    """Edit a model with a network, each edit by itself, and see what it does.

    Args:
        model: the model; it is not changed.
        maps: the matrices that the network changes.
        network: the network; gradients reach its parameters where `learning`.
        trials: edits; each with as many scored prompts and as many local texts as the others.
        learning: let the network take note of the gradients, and record what is needed to train it.
    """
    asks = [trial.edit for trial in trials]
    pairs, _ = token_pairs(model, maps, rows_of(asks, model.device))
    if learning:
        network.observe(pairs)
    rows = rows_of([ask for trial in trials for ask in (*trial.scored, *trial.local)], model.device)
    scored = len(trials[0].scored)
    is_scored = (torch.arange(len(rows.ids), device=model.device) % (len(rows.ids) // len(trials))) < scored
    with frozen(model.hf), torch.no_grad():
        before = _log_softmax(logits_of(model, _some(rows, ~is_scored)))
    with frozen(model.hf), torch.set_grad_enabled(learning):
        factors = network(pairs, condition_of(model, asks))
        with edited(maps, factors):
            logits = logits_of(model, rows)
        return _judged(logits, rows, is_scored, before, len(trials))


def _judged(logits: Tensor, rows: Rows, is_scored: Tensor, before: Tensor, edits: int) -> Outcome:
    asked, local = _some(rows, is_scored), _some(rows, ~is_scored)
    nll = target_nll(logits[is_scored], asked).reshape(edits, -1)
    missed = (logits[is_scored].argmax(-1) != asked.labels) & (asked.labels != -100)
    after = _log_softmax(logits[~is_scored])
    tokens = local.mask.to(after.dtype)
    counts = tokens.reshape(edits, -1).sum(1)
    kl = ((before.exp() * (before - after)).sum(-1) * tokens).reshape(edits, -1).sum(1)
    same = ((before.argmax(-1) == after.argmax(-1)) * tokens).reshape(edits, -1).sum(1)
    return Outcome(nll.mean(1), kl / counts, ~missed.any(1).reshape(edits, -1), same / counts)


def _log_softmax(logits: Tensor) -> Tensor:
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)


def _some(rows: Rows, which: Tensor) -> Rows:
    return Rows(rows.ids[which], rows.mask[which], rows.labels[which], rows.subject[which])

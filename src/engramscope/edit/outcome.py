"""What a model says of a fact, and what an edit's user should know about how it went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from engramscope.edit.matrices import LinearMap
from engramscope.edit.passes import TOKENS, logits_where, wide
from engramscope.edit.tokens import Ask, batches, rows_of, scored_nll
from engramscope.models.model import Model
from engramscope.models.site import Port
from engramscope.records.fact import Fact

#: |u · k / u · k*| below which the prompt on its own hardly feels an edit
_WEAK_KEY = 0.2
#: |ΔW| / |W| above which an edit is said to be large
_LARGE = 0.5


@dataclass(frozen=True, slots=True)
class Stated:
    """What the model says after a prompt.

    Attributes:
        probability: of the target, exp of the mean log-probability of its tokens.
        most_probable: the tokens that are most probable where the target's are asked for, as text.
        stated: they are the target.
    """

    probability: float
    most_probable: str
    stated: bool


@torch.no_grad()
def stated(model: Model, asks: Sequence[Ask]) -> list[Stated]:
    """What the model says after each prompt, as it is now; the target's earlier tokens are given."""
    found: dict[int, Stated] = {}
    for chosen in batches(asks, TOKENS):
        rows = rows_of([asks[index] for index in chosen], model.device)
        scored = rows.labels != -100
        logits = wide(logits_where(model, rows.ids, rows.mask, scored))
        nll = scored_nll(logits, rows).tolist()
        best = logits.argmax(-1).cpu().split([len(asks[index].target) for index in chosen])
        for place, index in enumerate(chosen):
            tokens = best[place].tolist()
            found[index] = Stated(
                math.exp(-nll[place]), str(model.tokenizer.decode(tokens)), tuple(tokens) == asks[index].target
            )
    return [found[index] for index in range(len(asks))]


def warnings_of(fact: Fact, entry: Mapping[str, Any], ask: Ask) -> list[tuple[str, str]]:
    """What is suspicious about an edit: a general sentence (for the notes) and one with this fact's figures.

    Args:
        fact: the fact.
        entry: its diagnostics.
        ask: its prompt as it stands.
    """
    name, found = fact.id or repr(fact.prompt), []
    if not entry["stated"]:
        found.append((
            "A target is not the most probable continuation of its prompt after the edit.",
            f"{name}: the most probable continuation after the edit is {entry['most_probable_after']!r}; the target "
            f"has probability {entry['probability_after']:.3g}.",
        ))  # fmt: skip
    if abs(entry.get("key_ratio", 1.0)) < _WEAK_KEY:
        found.append((
            "A prompt on its own has a key far from the mean of its keys after other texts, so it hardly feels the "
            "edit.",
            f"{name}: u·k / u·k* is {entry['key_ratio']:.3g}; the prompt on its own gets this share of the change.",
        ))  # fmt: skip
    if ask.subject == 0:
        found.append((
            "A subject is one token at the very start of its prompt, where keys are unlike those of any other place; "
            "such edits are known to damage models.",
            f"{name}: the subject {fact.subject!r} is one token at the very start of the prompt.",
        ))  # fmt: skip
    if entry["clamped"]:
        found.append((
            "The change of a value ended on the ball that it is held to (option 'clamp').",
            f"{name}: |delta| is {entry['delta_over_value']:.3g} times |v0|, as much as it may be.",
        ))  # fmt: skip
    if entry.get("relative_change", 0.0) > _LARGE:
        found.append((
            "An edit is large beside the matrix that it changes; look at the text that the model writes after it.",
            f"{name}: |ΔW| / |W| is {entry['relative_change']:.3g}.",
        ))  # fmt: skip
    return found


def post_norm_note(model: Model, layer: int, linear: LinearMap) -> str | None:
    """A sentence where a norm stands between the down projection and the residual stream."""
    if "mlp_out" in model.anatomy.refusals:
        return None
    port = model.site("mlp_out", layer)
    if not isinstance(port, Port) or linear.path == port.path or linear.path.startswith(f"{port.path}."):
        return None
    return (
        f"What {linear.path} gives passes {port.path} before it is added to the stream, so its length hardly matters "
        "and the clamp means less."
    )

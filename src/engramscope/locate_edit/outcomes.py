"""How well an edit went, on a scale from 0 to 1 that does not saturate: from probabilities before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from engramscope.edit.tokens import Ask, batches, encode, logits_of, rows_of, target_nll
from engramscope.errors import InputError
from engramscope.locate_edit.settings import OUTCOMES
from engramscope.models.model import Model
from engramscope.records import Record

#: padded tokens of one forward
_TOKENS = 4096


@dataclass(frozen=True)
class Probes:
    """What one fact is judged by: prompts, each continued by the new target.

    Attributes:
        asks: the prompts with the target, those of all outcomes one after the other.
        sizes: outcome -> how many of them are its.
    """

    asks: tuple[Ask, ...]
    sizes: dict[str, int]


def probes_of(model: Model, record: Record) -> Probes:
    """The rewrite prompt, the paraphrases, and the prompts about neighbours, each with the edit's new target.

    Raises:
        InputError: a prompt or the target cannot be encoded; names the record.
    """
    groups = ((record.fact.prompt,), record.paraphrases, tuple(probe.prompt for probe in record.neighbourhood))
    prompts = [prompt for group in groups for prompt in group]
    try:
        asks = encode(model, prompts, [record.fact.target] * len(prompts))
    except InputError as error:
        raise InputError([f"Record {record.id!r}: {fault}" for fault in error.faults]) from None
    return Probes(tuple(asks), {name: len(group) for name, group in zip(OUTCOMES, groups, strict=True)})


def probabilities(model: Model, asks: Sequence[Ask]) -> np.ndarray:
    """`P(target | prompt) = Π_i P(target_i | prompt, target_<i)` of the whole target, teacher-forced.

    Returns:
        One probability for each prompt.
    """
    found = np.empty(len(asks))
    for part in batches(asks, _TOKENS):
        rows = rows_of([asks[at] for at in part], model.device)
        with torch.no_grad():
            nll = target_nll(logits_of(model, rows), rows).double().cpu().numpy()
        lengths = np.array([len(asks[at].target) for at in part])
        found[part] = np.exp(-nll * lengths)
    return found


def share_gained(before: ArrayLike, after: ArrayLike) -> np.ndarray:
    """`max(0, 1 - (1 - after) / (1 - before))`: the share of what was missing to certainty that the edit brought.

    Args:
        before: probability of the new target before the edit, 0 to 1.
        after: after it.

    Returns:
        0 (nothing, or less than before) to 1; `NaN` where the target was certain before.

    Source: Hase et al. 2023 (arXiv 2301.04213), the rewrite and the paraphrase score.
    """
    pre, post = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(pre < 1.0, np.maximum(0.0, (post - pre) / (1.0 - pre)), np.nan)


def share_kept(before: ArrayLike, after: ArrayLike) -> np.ndarray:
    """`1 - |after - before| / (0.5 + |before - 0.5|)`: 1 where nothing changed, 0 for the largest change possible.

    Args:
        before: probability of the new target at a prompt about another subject, before the edit.
        after: after it.

    Source: Hase et al. 2023, the neighbourhood score.
    """
    pre, post = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    return 1.0 - np.abs(post - pre) / (0.5 + np.abs(pre - 0.5))


def judged(probes: Probes, before: np.ndarray, after: np.ndarray) -> dict[str, tuple[float, float, float, int]]:
    """For each outcome (score, probability before, probability after, prompts): means over its prompts.

    Outcomes without a prompt are left out. Hase et al. use the first paraphrase and the first neighbour only.
    """
    found, start = {}, 0
    for name, size in probes.sizes.items():
        here = slice(start, start + size)
        start += size
        if size:
            score = share_kept if name == "neighbourhood" else share_gained
            pre, post = before[here], after[here]
            found[name] = (float(score(pre, post).mean()), float(pre.mean()), float(post.mean()), size)
    return found

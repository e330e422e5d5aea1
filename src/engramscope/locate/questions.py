"""One prompt of every pair with the answers that it is scored by, and plain forwards over prompts of equal length."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from engramscope.engine.reference import MAX_TOKENS, Tap
from engramscope.errors import ModelError, PairsError, UnknownNameError, shortened
from engramscope.metrics import check_targets, get_metric
from engramscope.metrics._base import Target
from engramscope.models.hooks import taps
from engramscope.models.model import Model
from engramscope.pairs.clusters import clusters_of
from engramscope.pairs.encode import Encoder
from engramscope.pairs.pair import Pair, PairSet
from engramscope.pairs.tokenize import tokenize_pairs
from engramscope.pairs.tokenized import TokenizedPair, TokenizedPrompt
from engramscope.registry import nearest

Run: TypeAlias = Literal["clean", "corrupted"]
Pairs: TypeAlias = PairSet | Sequence[TokenizedPair]

#: bytes that values kept during one forward may take
KEPT_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt, and what its next-token logits are scored against.

    Attributes:
        id: the pair's id.
        cluster: what the pair shares with others; the unit of the statistics.
        prompt: the prompt of the run that was asked for, in tokens.
        target: the pair's answers in tokens.
    """

    id: str
    cluster: str
    prompt: TokenizedPrompt
    target: Target


def tokenized(model: Model, pairs: Pairs) -> Sequence[TokenizedPair]:
    """The pairs in tokens; those that are in tokens already are handed on.

    Raises:
        PairsError: there is no pair, or pairs are at fault.
        ModelError: the model has no tokenizer.
    """
    if not len(pairs):
        raise PairsError("There are no pairs; at least one is needed.")
    if not isinstance(pairs, PairSet):
        PairSet.of([pair.pair for pair in pairs])  # refuses ids that occur twice
        return pairs
    if model.tokenizer is None:
        raise ModelError(f"Model {model.name!r} has no tokenizer, so prompts cannot be turned into tokens.")
    # nothing is patched from one prompt into the other, so they may differ in length
    return tokenize_pairs(pairs, model.tokenizer, "both_ends")


def questions_of(
    model: Model,
    pairs: Pairs,
    metrics: Sequence[str],
    run: Run = "clean",
    cluster: str = "group",
    where_compared: Sequence[str] = (),
) -> list[Question]:
    """One prompt of every pair with its answers.

    Args:
        model: supplies the tokenizer.
        pairs: the pairs; or pairs in tokens, for a model without a tokenizer.
        metrics: names of metrics that the answers must fit.
        run: which of the two prompts.
        cluster: what makes pairs dependent: "group", "pair" or the name of a label.
        where_compared: names of metrics that the answers must fit in pairs that have incorrect answers.

    Raises:
        UnknownNameError: no such run, or no pair has such a label.
        PairsError: every pair at fault: no such prompt, too long for the model, or answers that do not fit a metric.
        ModelError: the model has no tokenizer.
    """
    choose("run", run, get_args(Run))
    tokens = tokenized(model, pairs)
    clusters = _clusters([pair.pair for pair in tokens], cluster)
    encoder = None if model.tokenizer is None else Encoder(model.tokenizer)
    found: list[Question] = []
    faults: list[str] = []
    for pair, name in zip(tokens, clusters, strict=True):
        prompt = pair.clean if run == "clean" else pair.corrupted
        target = Target(pair.correct, pair.incorrect)
        found.append(Question(pair.pair.id, name, prompt, target))
        if run == "corrupted" and pair.pair.corrupted is None:
            faults.append(f"Pair {pair.pair.id!r} has no corrupted prompt; give one, or ask for the clean run.")
        faults += too_long(model, pair.pair.id, len(prompt))
        asked = (*metrics, *(where_compared if target.incorrect else ()))
        decode = None if encoder is None else lambda token: encoder.show([token])[0]
        faults += [
            fault for metric in asked for fault in check_targets(get_metric(metric), target, pair.pair.id, decode)
        ]
    if faults:
        raise PairsError(shortened(faults))
    return found


def choose(what: str, given: str, known: tuple[str, ...]) -> None:
    """Raise where a word is none of those that are known.

    Raises:
        UnknownNameError: names the nearest one.
    """
    if given not in known:
        raise UnknownNameError(f"Unknown {what} {given!r}{nearest(given, known)}")


def _clusters(pairs: Sequence[Pair], by: str) -> list[str]:
    labels = sorted({label for pair in pairs for label in pair.labels})
    choose("cluster", by, ("group", "pair", *labels))
    return clusters_of(pairs, by)


def too_long(model: Model, pair: str, length: int) -> list[str]:
    """A sentence where a prompt has more tokens than the model has positions."""
    most = positions_of(model)
    if most is None or length <= most:
        return []
    return [f"Pair {pair!r}: its prompt has {length} tokens, but {model.name} takes at most {most}; shorten it."]


def positions_of(model: Model) -> int | None:
    """How many positions the model's configuration allows; None where it does not say."""
    found = getattr(model.hf.config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def of_equal_length(questions: Sequence[Question], token_bytes: float) -> Iterator[list[int]]:
    """Indices of questions that share a forward: prompts of equal length, so that nothing is padded.

    Args:
        questions: the questions.
        token_bytes: bytes that are kept for one token.
    """
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, question in enumerate(questions):
        by_length[len(question.prompt)].append(index)
    for length, members in by_length.items():
        size = max(1, min(MAX_TOKENS // length, int(KEPT_BYTES / max(1.0, token_bytes * length))))
        for first in range(0, len(members), size):
            yield members[first : first + size]


def forward_last(model: Model, tokens: Tensor, wanted: Sequence[Tap]) -> Tensor:
    """A forward of the whole model with functions at some sites; nothing is padded.

    The functions must leave their argument as it is and keep copies only (`taps(..., copies=False)`).

    Args:
        model: the model.
        tokens: ids [batch, seq].
        wanted: where, and what to do there.

    Returns:
        Logits [batch, vocab] at the last position. Where the model can, the head is applied there only, so functions in
        the head see one position.
    """
    only: dict[str, Any] = {}
    if "logits_to_keep" in inspect.signature(model.hf.forward).parameters:
        only = {"logits_to_keep": 1}
    with torch.no_grad(), taps(model, wanted, copies=False):
        logits: Tensor = model.hf(input_ids=tokens.to(model.device), use_cache=False, **only).logits
    return logits[:, -1]

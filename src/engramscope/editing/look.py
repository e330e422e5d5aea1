"""What a model says after the prompts of facts: the answers' probabilities, the likeliest tokens, its own words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engramscope.edit.tokens import encode, encoder_of
from engramscope.evaluate.answers import generated_answers, score_answers
from engramscope.evaluate.readings import NO_TOKEN, Readings
from engramscope.models.model import Model
from engramscope.records.fact import Fact


@dataclass(frozen=True, slots=True)
class Look:
    """What a model says after the prompt of one fact.

    Attributes:
        target: probability of the new answer, the geometric mean over its tokens, in [0, 1].
        true: the same of the old answer; None where nobody said what it is.
        top: the likeliest next tokens as text, with their probabilities, the first one first; empty where the model's
            answer is not a number.
        text: how the model goes on, the likeliest token at each step.
        stated: it goes on with the whole of the new answer.
        tokens: of the new answer.
    """

    target: float
    true: float | None
    top: tuple[tuple[str, float], ...]
    text: str
    stated: bool
    tokens: int


def look(model: Model, facts: Sequence[Fact], *, most: int = 5, length: int = 12) -> list[Look]:
    """What a model says after the prompts of facts.

    Args:
        model: the model as it is now.
        facts: sound ones.
        most: tokens in `top`.
        length: tokens in `text`; fewer where the model ends its text or its positions do.

    Raises:
        InputError: an answer has no tokens, or a text is longer than the model's positions.
    """
    readings = Readings(model)
    questions = [(fact.prompt, answer) for fact in facts for answer in (fact.target, fact.true) if answer is not None]
    scores = iter(score_answers(model, questions, readings))
    asks = encode(model, [fact.prompt for fact in facts], [fact.target for fact in facts])
    readings.read({ask.prompt: () for ask in asks}, whole=[ask.prompt for ask in asks])
    stated = generated_answers(model, [(fact.prompt, fact.target) for fact in facts], readings)
    texts = _continued(model, [ask.prompt for ask in asks], readings, length)
    found = []
    for fact, ask, text, whole in zip(facts, asks, texts, stated, strict=True):
        target = next(scores).probability
        true = next(scores).probability if fact.true is not None else None
        found.append(
            Look(target, true, _top(model, readings.distribution(ask.prompt), most), text, bool(whole), len(ask.target))
        )
    return found


def _top(model: Model, log_probs: np.ndarray, most: int) -> tuple[tuple[str, float], ...]:
    if np.isnan(log_probs).any():
        return ()
    # a stable sort, so that equal probabilities keep the order of the vocabulary
    order = np.argsort(-log_probs, kind="stable")[:most]
    show = encoder_of(model).show
    return tuple((show([int(token)])[0], float(np.exp(log_probs[token]))) for token in order)


def _continued(model: Model, prompts: Sequence[tuple[int, ...]], readings: Readings, length: int) -> list[str]:
    """The likeliest token at each step, for all prompts side by side."""
    tokenizer = encoder_of(model).tokenizer
    ends = set(tokenizer.all_special_ids)
    limit = getattr(model.hf.config, "max_position_embeddings", None)
    rows = list(prompts)
    going = set(range(len(rows)))
    for _ in range(length):
        going = {index for index in going if limit is None or len(rows[index]) < limit}
        readings.read({rows[index]: () for index in going})
        for index in sorted(going):
            token = readings.best(rows[index])
            if token == NO_TOKEN or token in ends:
                going.discard(index)
            else:
                rows[index] = (*rows[index], token)
    new = [list(row[len(prompt) :]) for row, prompt in zip(rows, prompts, strict=True)]
    return [str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)) for ids in new]

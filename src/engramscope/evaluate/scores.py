"""ES, EM, PS, PM, NS, NM, their accuracies, and CounterFact+: a record's answers, scored.

For a prompt q and an answer o of n tokens, nll(o | q) is the mean of −log P(token | q, earlier tokens) over the n
tokens, and P̃ = exp(−nll). A prompt is a success where the answer that ought to win has the smaller nll, strictly: a tie
is a failure, whichever answer it is that ought to win.

Source: Meng et al. 2022 (2202.05262), section 3.3; CounterFact+: Hoelscher-Obermaier et al. 2023.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engramscope.edit.tokens import encoder_of, spaced
from engramscope.evaluate.answers import AnswerScore, generated_answers, score_answers
from engramscope.evaluate.case import Row, row
from engramscope.evaluate.readings import Readings
from engramscope.models.model import Model
from engramscope.records.record import Record

Kind = Literal["rewrite", "paraphrase", "neighbourhood", "plus"]

#: kind of prompt -> names of success, magnitude, argmax accuracy and generated accuracy
_NAMES: Mapping[Kind, tuple[str, str, str | None, str | None]] = {
    "rewrite": ("ES", "EM", "ES_acc", "ES_gen"),
    "paraphrase": ("PS", "PM", "PS_acc", "PS_gen"),
    "neighbourhood": ("NS", "NM", "NS_acc", "NS_gen"),
    "plus": ("NS+", "NM+", None, None),
}
#: kinds whose new answer ought to win
_NEW_WINS: tuple[Kind, ...] = ("rewrite", "paraphrase")
#: kinds whose distribution of the next token is compared before and after
DIVERGENCES: Mapping[Kind, str] = {"neighbourhood": "NKL", "plus": "NKL+"}


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt of a record with its two answers, None where the record does not have them."""

    kind: Kind
    index: int
    prompt: str
    true: str | None
    new: str | None

    @property
    def better(self) -> str | None:
        """The answer that ought to win."""
        return self.new if self.kind in _NEW_WINS else self.true


def prompts_of(record: Record, *, plus: bool) -> list[Asked]:
    """The prompts of a record that answers are compared after.

    Args:
        record: the record.
        plus: with those of CounterFact+: the statement of the edit in front of each neighbourhood prompt.
    """
    fact = record.fact
    true = fact.true or None
    found = [Asked("rewrite", 0, fact.prompt, true, fact.target)]
    found += [Asked("paraphrase", i, prompt, true, fact.target) for i, prompt in enumerate(record.paraphrases)]
    near = [(probe.prompt, probe.true or None, probe.new or None) for probe in record.neighbourhood]
    found += [Asked("neighbourhood", i, *probe) for i, probe in enumerate(near)]
    if plus:
        stated = f"{fact.prompt}{spaced(fact.prompt, fact.target)}. "
        found += [Asked("plus", i, stated + prompt, *answers) for i, (prompt, *answers) in enumerate(near)]
    return found


def answer_scores(
    model: Model, asked: Sequence[Asked], readings: Readings, *, whole: bool = False
) -> dict[tuple[str, str], AnswerScore]:
    """(prompt, answer) -> score, for every answer of every prompt, all in few batches.

    Args:
        model: the model.
        asked: prompts of one record or of several.
        readings: of the model as it is now.
        whole: read the distributions of the next token, too, that `next_token_distributions` will want.

    Raises:
        InputError: an answer has no tokens, or a text is longer than the model's positions.
    """
    questions = list(dict.fromkeys((one.prompt, text) for one in asked for text in (one.true, one.new) if text))
    kept = {one.prompt for one in asked if whole and one.kind in DIVERGENCES}
    return dict(zip(questions, score_answers(model, questions, readings, kept), strict=True))


def score_rows(record: str, asked: Sequence[Asked], scores: Mapping[tuple[str, str], AnswerScore]) -> list[Row]:
    """Success, magnitude and argmax accuracy of every prompt of one record."""
    rows: list[Row] = []
    for one in asked:
        success, magnitude, accuracy, _ = _NAMES[one.kind]
        better = scores[one.prompt, one.better] if one.better else None
        other = one.true if one.kind in _NEW_WINS else one.new
        worse = scores[one.prompt, other] if other else None
        if better and worse:
            sound = not (better.collapsed or worse.collapsed)
            rows.append(row(record, success, one.index, float(better.nll < worse.nll) if sound else None))
            gap = better.probability - worse.probability
            rows.append(row(record, magnitude, one.index, gap if sound else None))
        if better and accuracy:
            rows.append(row(record, accuracy, one.index, None if better.collapsed else float(better.accurate)))
    return rows


def knows(record: Record, scores: Mapping[tuple[str, str], AnswerScore]) -> bool | None:
    """Whether the true answer is what the model says after the edited prompt, every token the most probable one."""
    fact = record.fact
    return scores[fact.prompt, fact.true].accurate if fact.true else None


def generated_rows(model: Model, named: Sequence[tuple[str, Asked]], readings: Readings) -> list[Row]:
    """Generated accuracy of prompts.

    Args:
        model: the model.
        named: id of the record, and one of its prompts.
        readings: of the model as it is now.
    """
    places: list[tuple[str, str, int, tuple[str, str]]] = []
    for record, one in named:
        name = _NAMES[one.kind][3]
        if name and one.better:
            places.append((record, name, one.index, (one.prompt, one.better)))
    questions = list(dict.fromkeys(question for *_, question in places))
    written = dict(zip(questions, generated_answers(model, questions, readings), strict=True))
    rows = []
    for record, name, index, question in places:
        verdict = written[question]
        rows.append(row(record, name, index, None if verdict is None else float(verdict)))
    return rows


def next_token_distributions(
    model: Model, asked: Sequence[Asked], readings: Readings
) -> dict[str, NDArray[np.float32]]:
    """Kind of prompt -> log-probabilities of the next token [prompts, vocab]; NaN where the model collapsed."""
    found: dict[str, NDArray[np.float32]] = {}
    for kind in DIVERGENCES:
        texts = [encoded.ids for encoded in encoder_of(model).encode([one.prompt for one in asked if one.kind == kind])]
        if texts:
            readings.read({}, whole=texts)
            found[kind] = np.stack([readings.distribution(text) for text in texts])
    return found


def divergence_rows(
    record: str, before: Mapping[str, NDArray[np.float32]], after: Mapping[str, NDArray[np.float32]]
) -> list[Row]:
    """KL(before ‖ after) of the next token, for each prompt that both have."""
    rows: list[Row] = []
    for kind, name in DIVERGENCES.items():
        if kind in before and kind in after:
            for index, (one, other) in enumerate(zip(before[kind], after[kind], strict=True)):
                rows.append(row(record, name, index, divergence(one, other)))
    return rows


def divergence(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    """Σ P_before (log P_before − log P_after) in nats, ≥ 0; NaN where a log-probability is."""
    one, other = before.astype(np.float64), after.astype(np.float64)
    if np.isnan(one).any() or np.isnan(other).any():
        return float("nan")
    seen = one > -np.inf
    return max(0.0, float(np.sum(np.exp(one[seen]) * (one[seen] - other[seen]))))

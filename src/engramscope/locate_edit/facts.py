"""Which facts are traced and edited: those that the model states right, and that have a partner to be replaced by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from engramscope.edit.tokens import Ask, batches, encode, encoder_of, logits_of, rows_of, spaced
from engramscope.errors import InputError
from engramscope.models.model import Model
from engramscope.pairs import Pair, PairSet
from engramscope.pairs.answers import continuation
from engramscope.records import Record

Progress = Callable[[str, int, int], None]

#: padded tokens of a forward that only looks what the model says
_TOKENS = 4096
#: records that are looked at together
_TOGETHER = 64
#: subjects that are tried, at a time and at most, in search of one of equally many tokens
_TRIED, _MOST_TRIED = 32, 512

UNKNOWN = "the model does not state it"
NO_PARTNER = "no other subject of its relation has as many tokens and another answer"
NO_TRUE = "the record does not say what is true"
UNSOUND = "it cannot be edited as it is worded"
NO_TEXT = "the first token of its answer is no text of its own"


@dataclass
class Chosen:
    """The facts, and what became of the others.

    Attributes:
        records: the chosen records, in the order of their file.
        pairs: for each of them the prompt, and the same with another subject: what is traced.
        looked_at: records that were looked at, until there were enough.
        left_out: reason -> how many records.
    """

    records: list[Record] = field(default_factory=list)
    pairs: PairSet = field(default_factory=lambda: PairSet((), "facts"))
    looked_at: int = 0
    left_out: dict[str, int] = field(default_factory=dict)


def choose_facts(
    model: Model, records: Sequence[Record], count: int, seed: int = 0, progress: Progress | None = None
) -> Chosen:
    """So many facts, drawn at random from the records, that the model states right.

    A fact is stated right where the most likely token at every position of its true answer is the one of the answer.
    Its partner for token replacement is another subject of the same relation (of the same sentence, where records name
    none) that has as many tokens and another answer. Tracing reads the first token of the answer, as in Meng et al.
    2022.

    Args:
        model: the model, unedited.
        records: all records; partners are sought among all of them.
        count: how many facts are wanted.
        seed: of the drawing.
        progress: called with (what, done, total).

    Raises:
        InputError: two records share an id, or fewer than 3 facts are left; says why.
    """
    _ensure_ids(records)
    rng = np.random.default_rng([seed, *b"facts"])
    order = rng.permutation(len(records))
    relations: dict[str, list[Record]] = {}
    for at in order:
        relations.setdefault(relation_of(records[at]), []).append(records[at])
    kept: dict[int, Pair] = {}
    chosen = Chosen()
    for start in range(0, len(order), _TOGETHER):
        part = [int(at) for at in order[start : start + _TOGETHER]]
        for at, found in zip(part, _judged(model, [records[at] for at in part], relations), strict=True):
            if len(kept) >= count:
                break
            chosen.looked_at += 1
            if isinstance(found, str):
                chosen.left_out[found] = chosen.left_out.get(found, 0) + 1
            else:
                kept[at] = found
        if progress:
            progress("choosing facts", len(kept), count)
        if len(kept) >= count:
            break
    if len(kept) < 3:
        raise InputError(_too_few(len(kept), chosen))
    chosen.records = [records[at] for at in sorted(kept)]
    chosen.pairs = PairSet.of([kept[at] for at in sorted(kept)], "facts")
    if progress:
        progress("choosing facts", len(kept), len(kept))
    return chosen


def relation_of(record: Record) -> str:
    """The relation of a record, or where it names none its sentence without the subject."""
    start, end = record.fact.subject_span if record.fact.subject in record.fact.prompt else (0, 0)
    return record.relation or f"{record.fact.prompt[:start]}{{}}{record.fact.prompt[end:]}"


def states_right(model: Model, asks: Sequence[Ask]) -> list[bool]:
    """Whether the most likely token is the target's at every position of the target, teacher-forced."""
    right = [False] * len(asks)
    for part in batches(asks, _TOKENS):
        rows = rows_of([asks[at] for at in part], model.device)
        with torch.no_grad():
            said = logits_of(model, rows).argmax(-1)
        agree = ((said == rows.labels) | (rows.labels == -100)).all(1)
        for at, one in zip(part, agree.tolist(), strict=True):
            right[at] = one
    return right


def _judged(model: Model, records: list[Record], relations: dict[str, list[Record]]) -> Iterator[Pair | str]:
    """For each record its pair, or why it is left out."""
    reasons = [_unsound(record) for record in records]
    sound = [record for record, reason in zip(records, reasons, strict=True) if reason is None]
    found = _encoded(
        model,
        [record.fact.prompt for record in sound],
        [str(record.fact.true) for record in sound],
        [record.fact.subject_span for record in sound],
    )
    asks = {record.id: ask for record, ask in zip(sound, found, strict=True) if ask is not None}
    right = dict(zip(asks, states_right(model, list(asks.values())), strict=True))
    for record, reason in zip(records, reasons, strict=True):
        if reason is not None:
            yield reason
        elif record.id not in asks:
            yield UNSOUND
        elif not right[record.id]:
            yield UNKNOWN
        else:
            yield _pair(model, record, asks[record.id], relations[relation_of(record)])


def _encoded(model: Model, prompts: list[str], targets: list[str], spans: list[tuple[int, int]]) -> list[Ask | None]:
    """`encode`, with None for what cannot be encoded."""
    try:
        return list(encode(model, prompts, targets, spans))
    except InputError:
        if len(prompts) == 1:
            return [None]
    singles = ([[one], [target], [span]] for one, target, span in zip(prompts, targets, spans, strict=True))
    return [_encoded(model, *single)[0] for single in singles]


def _unsound(record: Record) -> str | None:
    if record.fact.true is None:
        return NO_TRUE
    return UNSOUND if record.fact.faults() else None


def _pair(model: Model, record: Record, ask: Ask, relation: Sequence[Record]) -> Pair | str:
    correct = first_token_text(model, record.fact.prompt, str(record.fact.true))
    if correct is None:
        return NO_TEXT
    partner = _partner(model, record, ask, relation)
    if partner is None:
        return NO_PARTNER
    corrupted, span, incorrect = partner
    return Pair(
        id=record.id, clean=record.fact.prompt, correct=(correct,), corrupted=corrupted, incorrect=(incorrect,),
        group=record.id, spans={"subject": record.fact.subject_span}, corrupted_spans={"subject": span},
        labels={"relation": relation_of(record)},
    )  # fmt: skip


def _partner(
    model: Model, record: Record, ask: Ask, relation: Sequence[Record]
) -> tuple[str, tuple[int, int], str] | None:
    """The prompt with another subject, where that stands in it, and the text of the first token of its answer."""
    start, end = record.fact.subject_span
    before, after = record.fact.prompt[:start], record.fact.prompt[end:]
    others = _others(record, relation)
    for first in range(0, min(len(others), _MOST_TRIED), _TRIED):
        part = others[first : first + _TRIED]
        prompts = [before + other.fact.subject + after for other in part]
        spans = [(start, start + len(other.fact.subject)) for other in part]
        asks = _encoded(model, prompts, [str(other.fact.true) for other in part], spans)
        for other, prompt, span, one in zip(part, prompts, spans, asks, strict=True):
            if one is None or not _replaces(one, ask):
                continue
            incorrect = first_token_text(model, prompt, str(other.fact.true))
            if incorrect is not None:
                return prompt, span, incorrect
    return None


def _replaces(one: Ask, ask: Ask) -> bool:
    """Whether a prompt is the other's, token for token, with another subject and another first token of the answer."""
    aligned = len(one.prompt) == len(ask.prompt) and one.subject == ask.subject and one.prompt != ask.prompt
    return aligned and one.target[0] != ask.target[0]


def _others(record: Record, relation: Sequence[Record]) -> list[Record]:
    """Candidates, from the record on and around the end: so that not all facts share one partner."""
    at = next(place for place, other in enumerate(relation) if other.id == record.id)
    turned = [*relation[at + 1 :], *relation[:at]]
    return [
        other
        for other in turned
        if other.fact.true
        and other.fact.true.strip() not in ("", str(record.fact.true).strip())
        and other.fact.subject.strip() not in ("", record.fact.subject)
    ]


def first_token_text(model: Model, prompt: str, answer: str) -> str | None:
    """The beginning of an answer, as text, that is its first token after the prompt; None where no text is."""
    text = spaced(prompt, answer)
    encoder = encoder_of(model)
    beginnings = [text[:length] for length in range(len(text), 0, -1)]
    (before,) = encoder.encode([prompt])
    wholes = encoder.ids([prompt + beginning for beginning in beginnings])
    found = [continuation(encoder, before, one, whole) for one, whole in zip(beginnings, wholes, strict=True)]
    first = found[0].ids[:1]
    return next((one for one, ids in zip(beginnings, found, strict=True) if first and ids.ids == first), None)


def _ensure_ids(records: Sequence[Record]) -> None:
    seen: set[str] = set()
    twice = sorted({record.id for record in records if record.id in seen or seen.add(record.id)})
    if twice:
        raise InputError(f"Two records share the id {twice[0]!r}; every record needs an id of its own.")


def _too_few(count: int, chosen: Chosen) -> str:
    why = "; ".join(f"{number}: {reason}" for reason, number in chosen.left_out.items())
    return (
        f"Of {chosen.looked_at} records {count} can be traced and edited, and at least 3 are needed ({why or 'none'}). "
        "Give more records, or a model that knows them."
    )

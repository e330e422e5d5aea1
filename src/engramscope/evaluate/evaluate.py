"""Evaluate a model on records: every measure of a record, for the model as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from engramscope.edit.edit import Edit
from engramscope.errors import InputError
from engramscope.evaluate.case import CaseResult, Row, row
from engramscope.evaluate.entropy import ngram_entropy
from engramscope.evaluate.generation import Generated, sample_texts
from engramscope.evaluate.health import Health, HealthLimits, health_of
from engramscope.evaluate.perplexity import Perplexity, perplexity_of
from engramscope.evaluate.readings import Readings
from engramscope.evaluate.reference import References
from engramscope.evaluate.scores import (
    Asked,
    answer_scores,
    divergence_rows,
    generated_rows,
    knows,
    next_token_distributions,
    prompts_of,
    score_rows,
)
from engramscope.evaluate.zsre import zsre_rows
from engramscope.models.model import Model
from engramscope.records.record import Record

#: (what, done, total)
Progress = Callable[[str, int, int], None]

#: tokens of the texts about the subject that essence reads
_ESSENCE_TOKENS = 100


class EvaluateOptions(BaseModel):
    """What is measured, and how.

    Attributes:
        generation: write texts after the generation prompts (GE and RS; most of the time goes here).
        generated: generated accuracy of the answers.
        plus: CounterFact+, the statement of the edit in front of the neighbourhood prompts.
        divergence: keep distributions of the next token, for KL(before ‖ after).
        zsre: the three measures of zsRE.
        length: tokens of a generated text, prompt included.
        top_k: how many tokens it is drawn from.
        seed: of the generated texts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    generation: bool = True
    generated: bool = True
    plus: bool = True
    divergence: bool = True
    zsre: bool = False
    length: int = Field(default=100, ge=2)
    top_k: int = Field(default=5, ge=1)
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class EditResult:
    """An edit, measured.

    Attributes:
        before: the record on the model without the edit.
        after: the same with it.
        health: of the edit.
    """

    before: CaseResult
    after: CaseResult
    health: Health


def evaluate_records(
    model: Model, records: Sequence[Record], *, options: EvaluateOptions | None = None,
    references: References | None = None, before: Sequence[CaseResult] | None = None, progress: Progress | None = None,
) -> list[CaseResult]:  # fmt: skip
    """Every measure of several records on the model as it is now, with the edits that are in it.

    The prompts of all records share batches. A record's result does not depend on what is evaluated beside it, up to
    the rounding of the matrix products.

    Args:
        model: the model; nothing in it is changed.
        records: records with ids of their own.
        options: what is measured.
        references: reference texts; without them there is no RS.
        before: results of the same records on the model before the edit, for KL(before ‖ after).
        progress: called with (what, done, total).

    Returns:
        One result for each record.

    Raises:
        InputError: an answer has no tokens, a text is longer than the model's positions, or `before` is of other
            records.
    """
    chosen = options or EvaluateOptions()
    _ensure_same(records, before)
    readings = Readings(model)
    asked = [prompts_of(record, plus=chosen.plus) for record in records]
    everything = [one for prompts in asked for one in prompts]
    scores = answer_scores(model, everything, readings, whole=chosen.divergence)
    written = _generated(model, records, asked, readings) if chosen.generated else {}
    texts = _texts(model, records, chosen, progress) if chosen.generation else [[] for _ in records]
    results = []
    for index, (record, prompts) in enumerate(zip(records, asked, strict=True)):
        rows = score_rows(record.id, prompts, scores) + written.get(record.id, [])
        rows += zsre_rows(record.id, prompts, scores) if chosen.zsre else []
        rows += _text_rows(record, texts[index], references)
        rows += _essence_rows(model, record, references) if chosen.generation else []
        whole = next_token_distributions(model, prompts, readings) if chosen.divergence else {}
        if before is not None and chosen.divergence:
            rows += divergence_rows(record.id, before[index].distributions, whole)
        written_texts = tuple(one.text for one in texts[index])
        results.append(
            CaseResult(record.id, tuple(rows), knows(record, scores), written_texts, tuple(_notes(rows)), whole)
        )
    return results


def evaluate_record(
    model: Model, record: Record, *, options: EvaluateOptions | None = None, references: References | None = None,
    before: CaseResult | None = None, progress: Progress | None = None,
) -> CaseResult:  # fmt: skip
    """Every measure of one record; see `evaluate_records`."""
    known = None if before is None else [before]
    return evaluate_records(
        model, [record], options=options, references=references, before=known, progress=progress
    )[0]  # fmt: skip


def evaluate_edit(
    model: Model, edit: Edit, record: Record, *, options: EvaluateOptions | None = None,
    references: References | None = None, before: CaseResult | None = None, texts: Sequence[str] = (),
    perplexity_before: Perplexity | None = None, limits: HealthLimits | None = None, anyway: bool = False,
) -> EditResult:  # fmt: skip
    """Measure a record before an edit and with it, and the edit's health; the model is left as it was.

    Args:
        model: the model without the edit.
        edit: the edit.
        record: the record that it belongs to.
        options: what is measured.
        references: reference texts.
        before: the record's result before the edit, where it is known.
        texts: held-out texts for the perplexity.
        perplexity_before: of these texts before the edit, where it is known.
        limits: beyond which the health warns.
        anyway: as for `Edit.apply`.
    """
    if before is None:
        before = evaluate_record(model, record, options=options, references=references)
    first = perplexity_before or (perplexity_of(model, texts) if texts else None)
    with edit.applied(model, anyway=anyway):
        after = evaluate_record(model, record, options=options, references=references, before=before)
        last = perplexity_of(model, texts) if texts else None
    return EditResult(before, after, health_of(model, edit, before=first, after=last, limits=limits))


@dataclass(frozen=True, slots=True)
class Knowledge:
    """How many of the facts a model knows.

    Attributes:
        known: ids of records whose true answer is what the model says, every token the most probable one.
        unknown: ids of the others that have a true answer.
        unasked: ids of records without one.
    """

    known: tuple[str, ...]
    unknown: tuple[str, ...]
    unasked: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """What is to be said beside a table."""
        asked = len(self.known) + len(self.unknown)
        if not asked:
            return "The records do not say what was true before the edit, so it is not known what the model knew."
        return f"Before the edit the model gives the true answer to {len(self.known)} of {asked} facts." + (
            f" {len(self.unasked)} more do not say what was true." if self.unasked else ""
        )


def knowledge(before: Sequence[CaseResult]) -> Knowledge:
    """Count the facts that the model knows, from results before any edit."""
    return Knowledge(
        *(tuple(one.record for one in before if one.known is known) for known in (True, False, None))
    )  # fmt: skip


def _ensure_same(records: Sequence[Record], before: Sequence[CaseResult] | None) -> None:
    ids = [record.id for record in records]
    if len(set(ids)) < len(ids):
        twice = next(name for place, name in enumerate(ids) if name in ids[:place])
        raise InputError(f"Two records are called {twice!r}; their values could not be told apart.")
    if before is not None and [one.record for one in before] != ids:
        raise InputError("The results before the edit are of other records, or in another order.")


def _generated(
    model: Model, records: Sequence[Record], asked: Sequence[Sequence[Asked]], readings: Readings
) -> dict[str, list[Row]]:
    named = [(record.id, one) for record, prompts in zip(records, asked, strict=True) for one in prompts]
    found: dict[str, list[Row]] = {}
    for one in generated_rows(model, named, readings):
        found.setdefault(one.record, []).append(one)
    return found


def _texts(
    model: Model, records: Sequence[Record], options: EvaluateOptions, progress: Progress | None
) -> list[list[Generated]]:
    prompts = [prompt for record in records for prompt in record.generation]
    names = [f"{record.id}\n{index}" for record in records for index in range(len(record.generation))]
    found = iter(
        sample_texts(model, prompts, names, length=options.length, top_k=options.top_k, seed=options.seed,
                     progress=progress)
        if prompts
        else ()
    )  # fmt: skip
    return [[next(found) for _ in record.generation] for record in records]


def _text_rows(record: Record, texts: Sequence[Generated], references: References | None) -> list[Row]:
    """GE of each text, and RS of them all; a text that broke off counts as a failure, and so does RS with one."""
    rows = [
        row(record.id, "GE", index, None if text.collapsed else ngram_entropy(text.text))
        for index, text in enumerate(texts)
    ]
    score = references.score(record.reference, [text.text for text in texts]) if references else None
    if score is not None:
        rows.append(row(record.id, "RS", -1, None if any(text.collapsed for text in texts) else score))
    return rows


def _essence_rows(model: Model, record: Record, references: References | None) -> list[Row]:
    """Perplexity of the reference texts about the subject, one after the other, the first 100 tokens.

    Deviation: the release divides by all tokens, also by the first, which is not predicted; and it looks for such texts
    among those of the new answer only.
    """
    texts = references.about.get(record.fact.subject, ()) if references else ()
    if not texts:
        return []
    found = perplexity_of(model, [" ".join(texts)], first=_ESSENCE_TOKENS)
    return [row(record.id, "essence", -1, None if found.collapsed else found.value)]


def _notes(rows: Sequence[Row]) -> list[str]:
    lost = [one for one in rows if one.status == "collapsed"]
    if not lost:
        return []
    names = ", ".join(dict.fromkeys(one.measure for one in lost))
    return [
        f"The model's logits are not numbers in {len(lost)} of {len(rows)} values ({names}); they count as failures."
    ]  # fmt: skip

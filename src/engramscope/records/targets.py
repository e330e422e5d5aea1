"""New targets for facts that have none."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np

from engramscope.errors import InputError, shortened
from engramscope.records.read import Records, Unusable
from engramscope.records.record import Record


def with_drawn_targets(records: Records, seed: int = 0) -> Records:
    """Give every fact without a target one: an answer that is true for another fact of the same relation.

    All answers of the relation but the true one are equally likely, however often they occur. What a fact is given
    depends on the seed, its id and the answers of its relation, not on its place in the file. Facts that have a target
    keep it.

    Args:
        records: with relation and true answer where there is no target.
        seed: of the draw.

    Returns:
        The records with targets; those whose relation has no second answer are moved to `unusable`. The same object
        where every fact has a target.

    Raises:
        InputError: a fact without a target has no relation or no true answer; or nothing is left.
    """
    blank = [record for record in records if not record.fact.target]
    if not blank:
        return records
    faults = [
        f"The fact {record.id!r} has no {what}, so no target can be drawn for it."
        for record in blank
        for what, value in (("relation", record.relation), ("true answer", record.fact.true))
        if not value
    ]
    if faults:
        raise InputError(shortened(faults))
    answers: dict[str | None, set[str]] = {}
    for record in records:
        answers.setdefault(record.relation, set()).update([record.fact.true] if record.fact.true else [])
    drawn = [record if record.fact.target else _drawn(record, answers[record.relation], seed) for record in records]
    kept = tuple(record for record in drawn if record.fact.target)
    left_out = tuple(
        Unusable(
            record.id, record.source,
            (f"The fact {record.id!r}: its relation {record.relation!r} has no answer but the true one.",),
        )
        for record in drawn
        if not record.fact.target
    )  # fmt: skip
    if not kept:
        raise InputError([f"{records.name}: no target can be drawn.", *shortened([u.reasons[0] for u in left_out])])
    notes = (*records.notes, f"{len(blank) - len(left_out):,} new targets were drawn with seed {seed}.")
    return replace(records, records=kept, unusable=(*records.unusable, *left_out), notes=notes)


def _drawn(record: Record, answers: set[str], seed: int) -> Record:
    others = sorted(answers - {record.fact.true})
    if not others:
        return record
    draw = np.random.default_rng([seed, zlib.crc32(record.id.encode())])
    return replace(record, fact=replace(record.fact, target=others[int(draw.integers(len(others)))]))

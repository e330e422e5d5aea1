"""From a file of facts to pairs that can be traced under both corruptions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engramscope.errors import PairsError, shortened
from engramscope.pairs import PairSet, read_pairs
from engramscope.pairs.tokenize import tokenize_pairs
from engramscope.tasks import make_pairs

SUBJECT = "subject"


def pairs_of_facts(path: Path, tokenizer: Any, limit: int | None = None, seed: int = 0) -> PairSet:
    """The facts as pairs: as they are where each brings its corrupted prompt, else two by two (task `factual`).

    Args:
        path: any pair file: jsonl, csv, parquet, known_1000, CounterFact.
        tokenizer: of the model.
        limit: at most this many pairs.
        seed: of the couples.

    Raises:
        PairsError: no fact names its subject; pairs of unequal length; nothing can be paired.
    """
    facts = read_pairs(path)
    without = [fact.id for fact in facts if SUBJECT not in fact.spans]
    if len(without) == len(facts):
        raise PairsError(
            f"None of the {len(facts)} facts in {path.name} names its subject. Layers are looked for at the subject's "
            'last token, so give each fact a span: "spans": {"subject": [start, end]} (characters of the prompt).'
        )
    if any(fact.corrupted is None for fact in facts):
        return make_pairs("factual", limit, seed, tokenizer, files=(str(path.absolute()),))
    if without:
        faults = [f"Pair {name!r} names no span {SUBJECT!r}, and the others do." for name in without]
        raise PairsError(shortened(faults))
    kept = facts.limit(limit)
    tokenize_pairs(kept, tokenizer, "equal")  # refuses what cannot be aligned before a model is loaded
    return kept

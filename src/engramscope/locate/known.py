"""Which facts a model knows: those whose prompt it continues by a correct answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engramscope.engine.executor import Executor
from engramscope.locate.prepare import Prepared
from engramscope.locate.sweep import clean_logits

#: pairs whose prompts are run at a time
_PAIRS_PER_BATCH = 64
_SHOWN = 5
#: begins the reason why such a pair is left out
UNKNOWN = "the model does not know it"


def unknown_answers(executor: Executor, pairs: Sequence[Prepared]) -> dict[int, str]:
    """Pairs whose clean prompt is not continued by a correct answer.

    A pair is known if the most likely next token is the first token of one of its correct answers: the token whose
    probability is scored.

    Source: Meng et al. 2022, the known_1000 set. Deviation: there the token's text, without blanks, must be the whole
    answer, so answers of several tokens are never known.

    Returns:
        Index of the pair -> what the model says instead, a sentence without its full stop.
    """
    tokenizer = executor.model.tokenizer
    found: dict[int, str] = {}
    for first in range(0, len(pairs), _PAIRS_PER_BATCH):
        part = pairs[first : first + _PAIRS_PER_BATCH]
        logits = clean_logits(executor, part)
        for pair in part:
            top = int(logits[pair.index].argmax())
            if top not in {answer[0] for answer in pair.tokens.correct}:
                said, wanted = tokenizer.decode([top]), pair.tokens.pair.correct[0]
                found[pair.index] = f"{UNKNOWN}: it goes on with {said!r}, not {wanted!r}"
    return found


def too_few_known(pairs: Sequence[Prepared], unknown: Mapping[int, str], least: int) -> list[str]:
    """Says that too few pairs are left, with counts and examples."""
    left = len(pairs) - len(unknown)
    head = (
        f"The model knows the answer of {left} of the {len(pairs)} pairs, and at least {least} are asked for "
        "(pairs.at_least). Give more pairs, a smaller at_least, or leave out known = true."
    )
    shown = [f"Pair {pairs[index].id!r}: {reason}." for index, reason in list(unknown.items())[:_SHOWN]]
    return [head, *shown]

"""Year spans: "The war lasted from the year 1732 to the year 17" → any two digits above 32.

Years are two tokens, century and year within it; YY is the second one, in 02 … 98, drawn equally often. The corrupted
prompt has 01 in its place. Correct answers: all two-digit years above YY; incorrect: all below it. Span `yy`. Group:
the noun. Label `century`.

Metrics: `prob` is the published sum of probabilities; `sum_logit_diff` the published difference of sums, which moves
when a constant is added to all logits; `mean_logit_diff` the one to use.

Source: Hanna et al. 2305.00586; Zhang & Nanda 2309.16042, section 2 and appendix E. Nouns are those of
    `engramscope.bundled`.
Deviation: nouns and years are drawn evenly; the released list draws centuries by chance.
"""

from __future__ import annotations

from itertools import cycle, product
from typing import ClassVar

import numpy as np

from engramscope.bundled.sentences import load_words
from engramscope.bundled.world import load_world
from engramscope.errors import PairsError
from engramscope.pairs.pair import Pair, PairSet
from engramscope.pairs.vocabulary import Vocabulary
from engramscope.tasks._base import Setting, Task
from engramscope.tasks._fill import filled

CENTURIES = range(11, 18)
#: the first and the last year of a century have nothing below or above them
YEARS = range(2, 99)
TEMPLATE = "The {noun} lasted from the year {century}{yy} to the year {century}"
DEFAULT = 150


class GreaterThan(Task):
    """Greater than."""

    version: ClassVar[str] = "1"
    source: ClassVar[str] = "Hanna et al. (arXiv 2305.00586), with nouns of our own"
    model: ClassVar[str] = "mini"
    span: ClassVar[str] = "yy"
    needs_tokenizer: ClassVar[bool] = True

    def pairs(self, limit: int | None, rng: np.random.Generator, setting: Setting) -> PairSet:
        """Prompts whose years are spread evenly; nouns and centuries are drawn without repeating a prompt."""
        nouns = setting.vocabulary.singles(load_words(load_world().first_names).span_nouns, "nouns", 3)
        years = _two_token_years(setting.vocabulary)
        order = [sorted(years)[place] for place in rng.permutation(len(years))]
        left = {year: list(product(nouns, years[year])) for year in order}
        made: list[Pair] = []
        for year in cycle(order):
            if len(made) == (DEFAULT if limit is None else limit) or not any(left.values()):
                break
            if left[year]:
                noun, century = left[year].pop(int(rng.integers(len(left[year]))))
                made.append(_pair(len(made), noun, century, year))
        return PairSet.of(made, "greater_than")


def _two_token_years(vocabulary: Vocabulary) -> dict[int, list[int]]:
    """Years within a century -> centuries in which they, and 01, are two tokens.

    Raises:
        PairsError: the tokenizer splits years in another way.
    """

    def splits(century: int, year: int) -> bool:
        return vocabulary.is_split_as(f" {century}{year:02d}", (str(century), f"{year:02d}"))

    centuries = [century for century in CENTURIES if splits(century, 1)]
    found = {year: [century for century in centuries if splits(century, year)] for year in YEARS}
    found = {year: known for year, known in found.items() if known}
    if not found:
        raise PairsError(
            "The task 'greater_than' needs years of two tokens, century and year, but this tokenizer splits \" 1732\" "
            f"as {vocabulary.shown(' 1732')}; use a model whose tokenizer keeps digits in twos."
        )
    return found


def _pair(number: int, noun: str, century: int, year: int) -> Pair:
    words = {"noun": noun, "century": str(century)}
    clean, spans = filled(TEMPLATE, {**words, "yy": f"{year:02d}"})
    corrupted, _ = filled(TEMPLATE, {**words, "yy": "01"})
    return Pair(
        id=f"greater-than-{number}", clean=clean, corrupted=corrupted,
        correct=tuple(f"{above:02d}" for above in range(year + 1, 100)),
        incorrect=tuple(f"{below:02d}" for below in range(year)),
        group=noun, spans={"yy": spans["yy"]}, labels={"century": str(century)},
    )  # fmt: skip


COMPONENT = GreaterThan

"""Docstrings: a Python function whose docstring has named two of its arguments; the third comes next.

The signature is `(self, rand1, rand2, A, B, C, rand3)`, the docstring documents A and B and ends at the third
`:param`. The correct answer is C, the incorrect ones are all other arguments of the clean and of the corrupted
prompt. In the corrupted prompt another random word stands for C in the signature. Spans `a_def b_def c_def` (in the
signature), `a_doc b_doc` (in the docstring). Group: the name of the function.

Metric: `logit_diff`, whose best wrong answer counts, is the published one.

Source: Heimersheim & Janiak, "A circuit for Python docstrings in a 4-layer attention-only transformer" (2023); the
    corruption of Zhang & Nanda 2309.16042, section 2. Words are those of `engramscope.bundled`.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from engramscope.bundled.sentences import load_words
from engramscope.bundled.world import load_world
from engramscope.pairs.pair import Pair, PairSet
from engramscope.tasks._base import Setting, Task
from engramscope.tasks._fill import filled

DEFAULT = 150
TEMPLATE = (
    "\ndef {function}(self, {rand1}, {rand2}, {a_def}, {b_def}, {c_def}, {rand3}):\n"
    '    """{w0} {w1} {w2}\n\n    :param {a_doc}: {w3} {w4}\n    :param {b_doc}: {w5} {w6}\n    :param'
)
ROLES = ("a_def", "b_def", "c_def", "a_doc", "b_doc")


class Docstring(Task):
    """The next argument of a docstring."""

    version: ClassVar[str] = "1"
    source: ClassVar[str] = "Heimersheim & Janiak (2023), with words of our own"
    model: ClassVar[str] = "mini"
    span: ClassVar[str] = "c_def"
    needs_tokenizer: ClassVar[bool] = True

    def pairs(self, limit: int | None, rng: np.random.Generator, setting: Setting) -> PairSet:
        """Functions whose names come in turns; arguments and descriptions are drawn."""
        words = load_words(load_world().first_names)
        arguments = setting.vocabulary.singles(words.arguments, "argument names", 10)
        descriptions = setting.vocabulary.singles(words.descriptions, "words of descriptions", 10)
        functions = [name for name in setting.vocabulary.singles(words.functions, "function names", 3)]
        functions = [functions[place] for place in rng.permutation(len(functions))]
        made: list[Pair] = []
        for number in range(DEFAULT if limit is None else limit):
            drawn = [str(word) for word in rng.choice(arguments, 7, replace=False)]
            texts = [str(word) for word in rng.choice(descriptions, 7, replace=False)]
            made.append(_pair(number, functions[number % len(functions)], drawn, texts))
        return PairSet.of(made, "docstring")


def _pair(number: int, function: str, arguments: list[str], texts: list[str]) -> Pair:
    rand1, rand2, a, b, c, rand3, other = arguments
    words = {
        "function": function, "rand1": rand1, "rand2": rand2, "a_def": a, "b_def": b, "c_def": c, "rand3": rand3,
        "a_doc": a, "b_doc": b, **{f"w{at}": text for at, text in enumerate(texts)},
    }  # fmt: skip
    clean, spans = filled(TEMPLATE, words)
    corrupted, corrupted_spans = filled(TEMPLATE, {**words, "c_def": other})
    return Pair(
        id=f"docstring-{number}", clean=clean, corrupted=corrupted, correct=(f" {c}",),
        incorrect=tuple(f" {wrong}" for wrong in (rand1, rand2, a, b, rand3, other)), group=function,
        spans={role: spans[role] for role in ROLES}, corrupted_spans={role: corrupted_spans[role] for role in ROLES},
    )  # fmt: skip


COMPONENT = Docstring

"""Sums, differences and products after two worked examples of the same kind: "21 + 33 =" → " 54".

Spans `x3` and `y3`, the operands of the question; the corrupted prompt has two others there, with another result,
which is the incorrect answer. Options: `operation` (`+`, `-` or `x`) and `largest` operand (250, or 23 for `x`). Only
numbers of one token are used, for operands and results; what is subtracted is never the larger number, and no answer
stands in the prompt. Group: the result. Label `operation`.

Source: Stolfo et al. 2305.15054 as used by Zhang & Nanda 2309.16042, section 2 (two-shot; operands from 1 to 250, and
    to 23 for products).
Deviation: the paper keeps the questions that the model answers; count them with the audit's baseline accuracy.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from engramscope.errors import PairsError
from engramscope.pairs.pair import Pair, PairSet
from engramscope.pairs.vocabulary import Vocabulary
from engramscope.tasks._base import Setting, Task, TaskOptions, Variant
from engramscope.tasks._fill import filled

DEFAULT = 150
TEMPLATE = "{x1} {op} {y1} = {z1}\n{x2} {op} {y2} = {z2}\n{x3} {op} {y3} ="
_MOST_DRAWS = 10_000


class ArithmeticOptions(TaskOptions):
    """Options of `arithmetic`."""

    operation: Literal["+", "-", "x"] = "+"
    largest: int | None = Field(default=None, ge=3)


class Arithmetic(Task):
    """Two-shot arithmetic."""

    Options: ClassVar[type[TaskOptions]] = ArithmeticOptions
    version: ClassVar[str] = "1"
    source: ClassVar[str] = "Stolfo et al. (arXiv 2305.15054)"
    model: ClassVar[str] = "mini"
    span: ClassVar[str] = "y3"
    variants: ClassVar[tuple[Variant, ...]] = (Variant("operands", {}, ("x3", "y3")),)
    needs_tokenizer: ClassVar[bool] = True

    def pairs(self, limit: int | None, rng: np.random.Generator, setting: Setting) -> PairSet:
        """Questions whose operands are drawn."""
        assert isinstance(self.options, ArithmeticOptions)
        sums = _Sums(self.options, setting.vocabulary)
        seen, made = set[str](), list[Pair]()
        for _ in range(_MOST_DRAWS):
            if len(made) == (DEFAULT if limit is None else limit):
                break
            pair = sums.pair(f"arithmetic-{len(made)}", rng)
            if pair is not None and pair.clean not in seen:
                seen.add(pair.clean)
                made.append(pair)
        return PairSet.of(made, "arithmetic")


class _Sums:
    def __init__(self, options: ArithmeticOptions, vocabulary: Vocabulary) -> None:
        self.operation = options.operation
        largest = options.largest or (23 if options.operation == "x" else 250)
        numbers = [int(word) for word in vocabulary.singles(map(str, range(1, largest + 1)), "numbers", 3)]
        self.known = [
            (x, y)
            for x in numbers
            for y in numbers
            if self.result(x, y) >= 0 and vocabulary.is_single(str(self.result(x, y)))
        ]
        if len({self.result(x, y) for x, y in self.known}) < 3:
            raise PairsError(
                f"This tokenizer writes hardly any results of {self.operation} as one token; give a smaller `largest`."
            )

    def result(self, x: int, y: int) -> int:
        return {"+": x + y, "-": x - y, "x": x * y}[self.operation]

    def pair(self, name: str, rng: np.random.Generator) -> Pair | None:
        one, two, asked, other = (self.known[int(at)] for at in rng.integers(len(self.known), size=4))
        answer, wrong = self.result(*asked), self.result(*other)
        shown = {*one, *two, *asked, *other, self.result(*one), self.result(*two)}
        if answer == wrong or asked[0] == other[0] or asked[1] == other[1] or {answer, wrong} & shown:
            return None  # an answer that stands in the prompt could be copied from there
        words = {"op": self.operation}
        for at, (x, y) in (("1", one), ("2", two)):
            words |= {f"x{at}": str(x), f"y{at}": str(y), f"z{at}": str(self.result(x, y))}
        clean, spans = filled(TEMPLATE, {**words, "x3": str(asked[0]), "y3": str(asked[1])})
        corrupted, corrupted_spans = filled(TEMPLATE, {**words, "x3": str(other[0]), "y3": str(other[1])})
        return Pair(
            id=name, clean=clean, corrupted=corrupted, correct=(f" {answer}",), incorrect=(f" {wrong}",),
            group=str(answer), spans={role: spans[role] for role in ("x3", "y3")},
            corrupted_spans={role: corrupted_spans[role] for role in ("x3", "y3")},
            labels={"operation": self.operation},
        )  # fmt: skip


COMPONENT = Arithmetic

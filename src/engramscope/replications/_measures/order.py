"""Which of two measured numbers is the larger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from engramscope.errors import StudyError
from engramscope.replications import _verdict
from engramscope.replications._measures._base import Measure, Measured, MeasureOptions, NumberMeasure, Read, shown
from engramscope.replications._measures._parse import parse_measure
from engramscope.replications._results import Results
from engramscope.replications._verdict import Verdict


class OrderOptions(MeasureOptions):
    """Options of `order`.

    Attributes:
        larger, smaller: two measures whose value is a number, each with its own options (`measure = …`).
        factor: so many times larger at least.
        published: whether the order is published; False to show the two numbers only.
    """

    larger: dict[str, Any]
    smaller: dict[str, Any]
    factor: float = Field(default=1.0, gt=0)
    published: bool = True


class Order(Measure[OrderOptions]):
    """`larger > factor · smaller`.

    Raises:
        StudyError: one of the two is no measure of a number, or its options are at fault.
    """

    Options: ClassVar[type[MeasureOptions]] = OrderOptions

    def __init__(self, options: OrderOptions) -> None:
        super().__init__(options)
        self._larger, self._smaller = _number("larger", options.larger), _number("smaller", options.smaller)

    def reads(self) -> Sequence[Read]:
        """What the two look at."""
        return (*self._larger.reads(), *self._smaller.reads())

    def views(self) -> Sequence[str]:
        """What the two look at."""
        return (*self._larger.views(), *self._smaller.views())

    def published(self) -> str:
        """The order, in words."""
        if not self.options.published:
            return ""
        return (
            "the first is larger" if self.options.factor == 1 else f"the first is {self.options.factor:g} times larger"
        )

    def measure(self, results: Results) -> Measured:
        """Both numbers."""
        larger, _ = self._larger.number(results)
        smaller, _ = self._smaller.number(results)
        sign = ">" if larger.value > smaller.value else "≤"
        text = f"{shown(larger.value)} {sign} {shown(smaller.value)}"
        return Measured([larger.value, smaller.value], text)

    def judge(self, measured: Measured) -> Verdict:
        """The first is larger."""
        return _verdict.order(float(measured.value[0]), float(measured.value[1]), self.options.factor)


def _number(which: str, given: dict[str, Any]) -> NumberMeasure[Any]:
    options = dict(given)
    name = str(options.pop("measure", ""))
    found = parse_measure(name, options, which)
    if not isinstance(found, NumberMeasure):
        raise StudyError(f"{which}: the measure {name!r} gives no number, so it has no order.")
    return found


COMPONENT = Order

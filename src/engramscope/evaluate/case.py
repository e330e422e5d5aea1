"""What a model does on one record, value by value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from statistics import fmean
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engramscope.evaluate.measures import MEASURES

#: "collapsed": the model's logits were not numbers, and the value is the failure that the measure's description names
Status = Literal["ok", "collapsed"]


@dataclass(frozen=True, slots=True)
class Row:
    """One measure on one prompt.

    Attributes:
        record: id of the record.
        measure: a key of `MEASURES`.
        prompt: index of the prompt among those of its kind; -1 where the measure takes them all together.
        value: not scaled: shares and probabilities are in [0, 1].
        status: whether the model answered in numbers.
    """

    record: str
    measure: str
    prompt: int
    value: float
    status: Status = "ok"


def row(record: str, measure: str, prompt: int, value: float | None) -> Row:
    """One value, or the failure that stands for it where there is none because the model collapsed."""
    if value is None or value != value:
        return Row(record, measure, prompt, MEASURES[measure].collapsed, "collapsed")
    return Row(record, measure, prompt, float(value))


@dataclass(frozen=True)
class CaseResult:
    """A model's answers to one record, in one state of the model.

    Attributes:
        record: id of the record.
        rows: a value for each measure and prompt.
        known: whether every token of the true answer is the most probable one after the edited prompt; of a model
            before its edit: whether it knows the fact. None where the record has no true answer.
        texts: what was generated after the generation prompts, the prompts included.
        notes: sentences about what a user should know.
        distributions: kind of prompt -> log-probabilities of the next token [prompts, vocab]; for the comparison of
            before and after, and not part of what is saved.
    """

    record: str
    rows: tuple[Row, ...]
    known: bool | None = None
    texts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    distributions: Mapping[str, NDArray[np.float32]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def values(self) -> dict[str, float]:
        """Measure -> the case's value: the mean over its prompts."""
        return {name: fmean(one.value for one in rows) for name, rows in self._by_measure().items()}

    @property
    def collapsed(self) -> tuple[str, ...]:
        """The measures in which the model did not answer in numbers on some prompt."""
        return tuple(name for name, rows in self._by_measure().items() if any(one.status != "ok" for one in rows))

    def as_dict(self) -> dict[str, Any]:
        """JSON values; an infinite value is None, and its status says why."""
        rows = [[one.measure, one.prompt, one.value if isfinite(one.value) else None, one.status] for one in self.rows]
        return {
            "record": self.record, "rows": rows, "known": self.known, "texts": list(self.texts),
            "notes": list(self.notes),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> CaseResult:
        """What `as_dict` wrote, without the distributions."""
        rows = tuple(
            Row(saved["record"], measure, prompt, MEASURES[measure].collapsed if value is None else value, status)
            for measure, prompt, value, status in saved["rows"]
        )
        return cls(saved["record"], rows, saved["known"], tuple(saved["texts"]), tuple(saved["notes"]))

    def _by_measure(self) -> dict[str, list[Row]]:
        found: dict[str, list[Row]] = {}
        for one in self.rows:
            found.setdefault(one.measure, []).append(one)
        return found


def tidy(results: Sequence[CaseResult], **labels: object) -> list[dict[str, object]]:
    """Long-format rows of several cases: the labels, then record, measure, prompt, value, status."""
    return [
        {**labels, "record": one.record, "measure": one.measure, "prompt": one.prompt, "value": one.value,
         "status": one.status}
        for result in results
        for one in result.rows
    ]  # fmt: skip

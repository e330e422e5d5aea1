"""Rows of our own formats (jsonl, csv, parquet): the same names, checked in the same way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields

from engramscope.pairs.pair import CharSpan, Pair
from engramscope.pairs.readers._base import Faults, is_unicode, kind
from engramscope.pairs.roles import is_taken
from engramscope.registry import nearest

KEYS = tuple(field.name for field in fields(Pair))
Row = Mapping[str, object]


def pairs_of(rows: Iterable[tuple[str, Row]], faults: Faults) -> list[Pair]:
    """The pairs of (where, row), in order. A row without `id` is called after its place, for example "line-3".

    Raises:
        PairsError: every fault that was found, up to 20.
    """
    pairs: list[Pair] = []
    seen: dict[str, str] = {}
    for where, row in rows:
        pair = _Checked(where, row, faults).pair()
        if pair is None:
            continue
        if pair.id in seen:
            faults.add(where, f"the id {pair.id!r} was given before, in {seen[pair.id]}")
        seen.setdefault(pair.id, where)
        pairs.append(pair)
    faults.check()
    return pairs


class _Checked:
    """One row, its values checked as they are taken."""

    def __init__(self, where: str, row: Row, faults: Faults) -> None:
        self._where, self._row, self._faults = where, row, faults
        self._before = faults.count

    def pair(self) -> Pair | None:
        for key in self._row:
            if key not in KEYS:
                self._fault(f"unknown key {key!r}{nearest(str(key), KEYS)}".removesuffix("."))
        clean = self._text("clean", required=True)
        corrupted = self._text("corrupted")
        correct, incorrect = self._texts("correct", required=True), self._texts("incorrect")
        both = [answer for answer in correct if answer in incorrect]
        if both:
            self._fault(f"{both[0]!r} stands both in 'correct' and in 'incorrect'")
        spans = self._spans("spans", "clean", clean or "")
        corrupted_spans = self._spans("corrupted_spans", "corrupted", corrupted or "")
        identity, group, labels = self._word("id"), self._word("group"), self._labels()
        if self._faults.count > self._before:
            return None
        return Pair(
            id=identity or self._where.replace(" ", "-"), clean=clean or "", correct=correct, corrupted=corrupted,
            incorrect=incorrect, group=group, spans=spans, corrupted_spans=corrupted_spans, labels=labels,
        )  # fmt: skip

    def _fault(self, what: str) -> None:
        self._faults.add(self._where, what)

    def _text(self, key: str, required: bool = False) -> str | None:
        value = self._row.get(key)
        if value is None and not required:
            return None
        if key not in self._row or value is None:
            self._fault(f"{key!r} is missing")
        elif not isinstance(value, str) or not value:
            self._fault(f"{key!r} must be a text that is not empty, found {kind(value)}")
        elif not is_unicode(value):
            self._fault(f"{key!r} holds half a character (a lone surrogate)")
        else:
            return value
        return None

    def _texts(self, key: str, required: bool = False) -> tuple[str, ...]:
        value = self._row.get(key)
        if value is None and not required:
            return ()
        if key not in self._row or value is None:
            self._fault(f"{key!r} is missing")
            return ()
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(one, str) and one for one in values):
            self._fault(f"{key!r} must be a list of texts that are not empty, found {kind(value)}")
            return ()
        if required and not values:
            self._fault(f"{key!r} is an empty list; give at least one acceptable answer")
        if not all(is_unicode(one) for one in values):
            self._fault(f"{key!r} holds half a character (a lone surrogate)")
        if len(set(values)) < len(values):
            self._fault(f"{key!r} names an answer twice: {kind(values)}")
        return tuple(values)

    def _word(self, key: str) -> str:
        value = self._row.get(key)
        if value is None:
            return ""
        if isinstance(value, bool) or not isinstance(value, str | int):
            self._fault(f"{key!r} must be a text, found {kind(value)}")
            return ""
        return str(value)

    def _object(self, key: str) -> Mapping[object, object]:
        value = self._row.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self._fault(f"{key!r} must be an object, found {kind(value)}")
            return {}
        return value

    def _spans(self, key: str, prompt: str, text: str) -> dict[str, CharSpan]:
        found: dict[str, CharSpan] = {}
        for name, value in self._object(key).items():
            place = f"the span {name!r} in {key!r}"
            if not isinstance(name, str) or not name or is_taken(name):
                self._fault(f"{place} needs another name, this one means something else as a position")
            elif not _is_span(value):
                self._fault(f"{place} must be [start, end), two whole numbers, found {kind(value)}")
            elif not text:
                self._fault(f"{place}: there is no {prompt!r} to which it could belong")
            else:
                start, end = value  # type: ignore[misc]
                if not 0 <= start < end <= len(text):
                    self._fault(f"{place} is [{start}, {end}), but {prompt!r} has characters 0 to {len(text)}")
                found[name] = (start, end)
        return found

    def _labels(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, value in self._object("labels").items():
            if isinstance(value, bool) or not isinstance(value, str | int) or not isinstance(name, str):
                self._fault(f"the label {name!r} must be a text, found {kind(value)}")
            else:
                found[name] = str(value)
        return found


def _is_span(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(number, int) and not isinstance(number, bool) for number in value)
    )

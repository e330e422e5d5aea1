"""What a reader of record files is, and what all of them need."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from engramscope.pairs.readers._base import Faults, Source, is_unicode, kind
from engramscope.records.record import Record

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Found:
    """A record and its place in the file, for messages ("record 3 (case_id 17)")."""

    where: str
    record: Record


class RecordReader(ABC):
    """Reads one format.

    Attributes:
        notes: what a user must know about every file of this format, a sentence each.
        has_targets: whether the format says what a fact is to become. Where it does not, `fact.target` is empty.
    """

    notes: ClassVar[tuple[str, ...]] = ()
    has_targets: ClassVar[bool] = True

    @classmethod
    @abstractmethod
    def recognises(cls, source: Source) -> int:
        """How surely the file is of this format: 2 its beginning says so, 1 its extension says so, 0 neither."""

    @abstractmethod
    def read(self, source: Source, faults: Faults) -> Iterator[Found]:
        """The records in the order of the file; what does not fit the format goes to `faults`, and is not yielded.

        Whether a record can be used (subject in the prompt, a new target) is not the reader's business.
        """


def has_keys(source: Source, *keys: str) -> bool:
    """Whether a file begins as a JSON list, and all of these keys stand near its beginning."""
    return source.head.startswith("[") and all(f'"{key}"' in source.head for key in keys)


class Fields:
    """The fields of one JSON object, checked as they are taken; what is wrong goes to `faults`.

    Texts may be empty: an empty subject makes a record unusable, but does not spoil its file.

    Args:
        row: the object.
        where: its place, for messages.
        faults: of the file.
    """

    def __init__(self, row: Mapping[str, object], where: str, faults: Faults) -> None:
        self.row, self.where, self._faults = row, where, faults
        self._before = faults.count

    @property
    def sound(self) -> bool:
        """Whether nothing was wrong so far, in this object and in those taken from it."""
        return self._faults.count == self._before

    def text(self, key: str) -> str:
        """A text that must be there."""
        return self._text(key, self.row[key]) if key in self.row else self._missing(key, "")

    def optional(self, key: str) -> str | None:
        """A text that may be absent or null."""
        value = self.row.get(key)
        return None if value is None else self._text(key, value)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts that must be there."""
        return tuple(self._text(f"{key}[{i}]", value) for i, value in enumerate(self._list(key)))

    def inner(self, key: str) -> Fields | None:
        """An object that must be there; None, and a fault, where it is not."""
        if key not in self.row:
            return self._missing(key, None)
        return self._fields(key, self.row[key])

    def all_inner(self, key: str) -> list[Fields]:
        """A list of objects that must be there."""
        found = [self._fields(f"{key}[{i}]", value) for i, value in enumerate(self._list(key))]
        return [fields for fields in found if fields is not None]

    def fault(self, what: str) -> None:
        """Note that something else is wrong."""
        self._faults.add(self.where, what)

    def _missing(self, key: str, instead: T) -> T:
        self.fault(f"{key!r} is missing")
        return instead

    def _text(self, key: str, value: object) -> str:
        if not isinstance(value, str):
            self.fault(f"{key!r} must be a text, found {kind(value)}")
        elif not is_unicode(value):
            self.fault(f"{key!r} holds half a character (a lone surrogate)")
        else:
            return value
        return ""

    def _list(self, key: str) -> list[object]:
        if key not in self.row:
            return self._missing(key, [])
        value = self.row[key]
        if isinstance(value, list):
            return value
        self.fault(f"{key!r} must be a list, found {kind(value)}")
        return []

    def _fields(self, key: str, value: object) -> Fields | None:
        if isinstance(value, dict):
            return Fields(value, f"{self.where}, {key}", self._faults)
        self.fault(f"{key!r} must be an object, found {kind(value)}")
        return None


def objects(source: Source, faults: Faults, id_key: str | None = None) -> Iterator[tuple[int, Fields]]:
    """The objects of a JSON list with their index, each called after its index and its id.

    Args:
        source: the file.
        faults: of the file.
        id_key: the key that holds the id, which must be there; None where the format has none.
    """
    value = source.json()
    if not isinstance(value, list):
        faults.add("the whole file", f"expected a list of records, found {kind(value)}")
        return
    for index, row in enumerate(value):
        where = f"record {index}"
        if not isinstance(row, dict):
            faults.add(where, f"expected an object, found {kind(row)}")
            continue
        if id_key is None:
            yield index, Fields(row, where, faults)
            continue
        identity = row.get(id_key)
        if isinstance(identity, bool) or not isinstance(identity, str | int):
            what = f"must be a number or a text, found {kind(identity)}" if id_key in row else "is missing"
            faults.add(where, f"{id_key!r} {what}")
            continue
        yield index, Fields(row, f"{where} ({id_key} {identity})", faults)

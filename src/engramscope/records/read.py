"""Reading a file of facts or records, and saying what of it can be used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, overload

from engramscope.errors import InputError, PairsError, shortened
from engramscope.pairs.readers._base import Faults, Source
from engramscope.records.fact import Fact
from engramscope.records.formats import FORMATS, format_names
from engramscope.records.formats._base import Found
from engramscope.records.record import Record


@dataclass(frozen=True, slots=True)
class Unusable:
    """A record that was left out.

    Attributes:
        id: its id.
        where: its place in the file.
        reasons: why it cannot be used, a sentence each.
    """

    id: str
    where: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Records(Sequence[Record]):
    """The usable records of a file, and what to know about it. A sequence of `Record`.

    Attributes:
        records: in the order of the file.
        name: the file.
        format: its format; "bundled" for the set that comes with the package.
        sha256: of the file's bytes, in hexadecimal.
        unusable: what was left out, and why.
        notes: what a user must know about numbers from this file, a sentence each.
    """

    records: tuple[Record, ...]
    name: str
    format: str
    sha256: str
    unusable: tuple[Unusable, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def facts(self) -> tuple[Fact, ...]:
        """The fact of every record."""
        return tuple(record.fact for record in self.records)

    @property
    def without_target(self) -> int:
        """How many facts have no new target, and so cannot be edited before one is drawn (`with_drawn_targets`)."""
        return sum(not record.fact.target for record in self.records)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What must stand beside every number from these records: how many were left out, and the notes."""
        if not self.unusable:
            return self.notes
        count = len(self.unusable)
        left_out = "1 record" if count == 1 else f"{count:,} records"
        verb, first = ("is", "") if count == 1 else ("are", ", the first for this reason")
        reason = self.unusable[0].reasons[0]
        return (f"{left_out} of {self.name} cannot be used and {verb} left out{first}: {reason}", *self.notes)

    def described(self) -> list[str]:
        """What was read and what was left out, and the notes: sentences for a person."""
        sentences = [f"{self.name} ({self.format}): {len(self):,} records."]
        if self.unusable:
            shown = shortened([reason for one in self.unusable for reason in one.reasons], most=5)
            sentences += [f"{len(self.unusable):,} more cannot be used and are left out:", *shown]
        return [*sentences, *self.notes]

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Record, ...]: ...
    def __getitem__(self, index: int | slice) -> Record | tuple[Record, ...]:
        return self.records[index]

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)


def read_records(
    path: str | Path, format: str | None = None, *, unusable: Literal["skip", "refuse"] = "skip"
) -> Records:
    """The records of a file.

    A record is unusable where its subject does not stand in its prompt exactly once, its target is the old answer, one
    of its texts is empty, or its id was given before.

    Args:
        path: the file.
        format: the name of its format; None to tell it from the file's beginning and its extension.
        unusable: "skip" keeps the usable records and lists the others; "refuse" makes an unusable one an error.

    Raises:
        InputError: unreadable, empty, of no known format; a field is missing or of the wrong kind (which one, in which
            record: up to 20 faults); nothing in it can be used; or something cannot, and `unusable` is "refuse".
        UnknownNameError: no format has this name.
    """
    try:
        source = Source.open(Path(path), what="record file")
        name = format or _detected(source)
        reader = FORMATS.get(name)()
        faults = Faults(source.name)
        found = list(reader.read(source, faults))
        faults.check()
    except PairsError as error:
        raise InputError(error.faults) from None
    kept, left_out = _sorted(found, has_targets=reader.has_targets)
    reasons = [reason for one in left_out for reason in one.reasons]
    if reasons and unusable == "refuse":
        raise InputError([f"{source.name}: {len(left_out):,} records cannot be used.", *shortened(reasons)])
    if not kept:
        raise InputError([f"{source.name} holds no record that can be used.", *shortened(reasons)])
    return Records(kept, source.name, name, hashlib.sha256(source.data).hexdigest(), left_out, reader.notes)


def _detected(source: Source) -> str:
    scores = {name: FORMATS.get(name).recognises(source) for name in format_names()}
    best = max(scores.values())
    names = [name for name, score in scores.items() if score == best]
    if best == 0 or len(names) > 1:
        raise InputError(
            f"The format of {source.name} cannot be told from its beginning; name it (format = …). "
            f"Known: {', '.join(names if best else format_names())}."
        )
    return names[0]


def _sorted(found: Iterable[Found], *, has_targets: bool) -> tuple[tuple[Record, ...], tuple[Unusable, ...]]:
    kept: list[Record] = []
    left_out: list[Unusable] = []
    first: dict[str, str] = {}
    for one in found:
        identity = one.record.id
        reasons = _reasons(one.record, has_targets=has_targets)
        if identity in first:
            reasons.append(
                f"The fact {identity!r} in {one.where} has an id that was given before, in {first[identity]}."
            )
        first.setdefault(identity, one.where)
        if reasons:
            left_out.append(Unusable(identity, one.where, tuple(reasons)))
        else:
            kept.append(one.record)
    return tuple(kept), tuple(left_out)


def _reasons(record: Record, *, has_targets: bool) -> list[str]:
    # a target that is still to be drawn is no fault; everything else about the fact is checked as usual
    fact = record.fact if has_targets else replace(record.fact, target=f"not {record.fact.true}")
    probes = {"neighbourhood": record.neighbourhood, "attribute": record.attribute}
    texts = {
        "paraphrase": record.paraphrases, "generation": record.generation,
        **{kind: [one.prompt for one in found] for kind, found in probes.items()},
    }  # fmt: skip
    empty = [kind for kind, prompts in texts.items() if not all(prompt.strip() for prompt in prompts)]
    answers = [kind for kind, found in probes.items() if not all(one.true.strip() and one.new.strip() for one in found)]
    return [
        *fact.faults(),
        *(f"The fact {record.id!r} has an empty {kind} prompt." for kind in empty),
        *(f"The fact {record.id!r} has a {kind} prompt without an answer." for kind in answers if fact.target.strip()),
    ]

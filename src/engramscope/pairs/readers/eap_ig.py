"""Tables of the EAP-IG circuit papers: indirect object, greater-than, and subject-verb agreement.

Columns `clean corrupted` and, by task:

* greater-than: `label` or `correct_idx`, the last two digits y of the start year (52 for "… from the year 1352 to the
  year 13"). Correct are the two-digit years above y, incorrect 00 to y. Span `year`: the two digits in the prompt;
  group: the noun.
* indirect object: `corrupted_hard correct_idx incorrect_idx`. The two numbers are ids of some tokenizer, so the
  answers are taken from the text: `clean` and `corrupted_hard` differ in one word, the repeated name (incorrect) in
  `clean` and the other name (correct) in `corrupted_hard`. Given a tokenizer, the ids must decode to these names;
  without one, a name must have the same id throughout the file. Spans `io s1 s2`; group: the sentence without its
  names.
* agreement: `group plural`, plural = 1 where `clean` asks for a plural verb. Span `noun`: the word whose number
  differs (the first one, where the verb of a clause inside the prompt follows it).

Source: hannamw/EAP-IG and hannamw/eap-ig-faithfulness, data of Hanna et al. 2403.17806.
Deviation: agreement files hold no answers, and the paper's verb list is not part of them: `VERBS` below are ours. Where
    the indirect-object table offers two corrupted prompts, `corrupted` (the repeated name replaced by a third) is
    taken.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias

from engramscope.pairs.pair import CharSpan, Pair
from engramscope.pairs.readers._base import Faults, Reader, Source
from engramscope.pairs.readers._table import csv_rows, header_of

#: singular and plural verb forms that complete an agreement prompt
VERBS = ((" is", " are"), (" was", " were"), (" has", " have"))

_YEARS = re.compile(
    r"^(?:The )?(?P<noun>.+?) \w+ from the year (?P<century>\d\d)(?P<year>\d\d)\b.* (?P=century)$", re.ASCII | re.DOTALL
)
_WORD = re.compile(r"\w+|\W")
Row: TypeAlias = dict[str, str]


class EapIg(Reader):
    """Reads the CSV files of EAP-IG."""

    @classmethod
    def recognises(cls, source: Source) -> int:
        """By its column names."""
        return 2 if _maker(set(header_of(source))) else 0

    def read(self, source: Source) -> list[Pair]:
        """The pairs, called after the lines of the file; every fault is named."""
        faults = Faults(source.name)
        rows = csv_rows(source, faults)
        maker = _maker(set(header_of(source)))
        if maker is None:
            faults.add("line 1", f"no column names of an EAP-IG table: {', '.join(header_of(source))}")
            faults.check()
            return []
        pairs = [pair for where, row in rows if (pair := maker(row, where, faults))]
        if maker is _indirect_object:
            _check_ids(rows, pairs, source, faults)
        faults.check()
        return pairs


def _maker(columns: set[str]) -> Callable[[Row, str, Faults], Pair | None] | None:
    if not {"clean", "corrupted"} <= columns:
        return None
    if {"corrupted_hard", "correct_idx", "incorrect_idx"} <= columns:
        return _indirect_object
    if "plural" in columns:
        return _agreement
    if "label" in columns or "correct_idx" in columns:
        return _greater_than
    return None


def _greater_than(row: Row, where: str, faults: Faults) -> Pair | None:
    label = row["label"] if "label" in row else row["correct_idx"]
    match = _YEARS.match(row["clean"])
    if not (label.isascii() and label.isdigit() and len(label) <= 2) or int(label) > 98:
        faults.add(where, f"the label must be the last two digits of a year, 0 to 98, found {label!r}")
        return None
    if match is None or int(match["year"]) != int(label):
        faults.add(where, f"the label is {label!r}, but the prompt does not name a start year that ends in it, or does "
                          f"not end in its century: {row['clean'][:80]!r}")  # fmt: skip
        return None
    years = [f"{year:02d}" for year in range(100)]
    return Pair(
        id=where.replace(" ", "-"), clean=row["clean"], corrupted=row["corrupted"], group=match["noun"],
        correct=tuple(years[int(label) + 1 :]), incorrect=tuple(years[: int(label) + 1]),
        spans={"year": match.span("year")},
    )  # fmt: skip


def _agreement(row: Row, where: str, faults: Faults) -> Pair | None:
    if row["plural"] not in ("0", "1"):
        faults.add(where, f"'plural' must be 0 or 1, found {row['plural']!r}")
        return None
    differing = _different_words(row["clean"], row["corrupted"])
    if not 1 <= len(differing) <= 2:
        faults.add(where, "the two prompts must have equally many words and differ in the number of one noun")
        return None
    changed = differing[0]
    singular, plural = tuple(pair[0] for pair in VERBS), tuple(pair[1] for pair in VERBS)
    correct, incorrect = (plural, singular) if row["plural"] == "1" else (singular, plural)
    return Pair(
        id=where.replace(" ", "-"), clean=row["clean"], corrupted=row["corrupted"], correct=correct,
        incorrect=incorrect, group=row.get("group", ""), spans={"noun": changed[0]},
        corrupted_spans={"noun": changed[1]}, labels={"number": "plural" if row["plural"] == "1" else "singular"},
    )  # fmt: skip


def _indirect_object(row: Row, where: str, faults: Faults) -> Pair | None:
    clean, hard = row["clean"], row["corrupted_hard"]
    changed, third = _one_word(clean, hard), _one_word(clean, row["corrupted"])
    if changed is None or third is None or third[0] != changed[0]:
        faults.add(where, "'corrupted' and 'corrupted_hard' must each differ from 'clean' in one name, the same")
        return None
    subject, other = clean[slice(*changed[0])], hard[slice(*changed[1])]
    first, giver = _spans_of(other, clean), _spans_of(subject, clean)
    if len(first) != 1 or len(giver) != 2:
        faults.add(where, f"{subject!r} must stand twice in the prompt and {other!r} once: {clean[:80]!r}")
        return None
    return Pair(
        id=where.replace(" ", "-"), clean=clean, corrupted=row["corrupted"], correct=(" " + other,),
        incorrect=(" " + subject,), group=_without_names(clean, {first[0]: "[A]", giver[0]: "[B]", giver[1]: "[B]"}),
        spans={"io": first[0], "s1": giver[0], "s2": giver[1]}, corrupted_spans={"s2": third[1]},
    )  # fmt: skip


def _check_ids(rows: list[tuple[str, Row]], pairs: list[Pair], source: Source, faults: Faults) -> None:
    by_id = {pair.id: pair for pair in pairs}
    known: dict[str, str] = {}
    for where, row in rows:
        pair = by_id.get(where.replace(" ", "-"))
        if pair is None:
            continue
        for answer, column in ((pair.correct[0], "correct_idx"), (pair.incorrect[0], "incorrect_idx")):
            number = row[column]
            if not (number.isascii() and number.isdigit()):
                faults.add(where, f"{column!r} must be a token id, found {number!r}")
            elif known.setdefault(answer, number) != number:
                faults.add(where, f"{answer!r} has the token id {number} here but {known[answer]} before")
            elif source.tokenizer is not None and _decoded(source, int(number)) != answer.strip():
                decoded = _decoded(source, int(number))
                faults.add(
                    where,
                    f"token {number} of this tokenizer is {decoded!r}, not {answer!r}; the file was made for another",
                )


def _decoded(source: Source, token: int) -> str:
    assert source.tokenizer is not None
    if token >= len(source.tokenizer):
        return "(none)"
    return str(source.tokenizer.decode([token])).strip()


def _one_word(first: str, second: str) -> tuple[CharSpan, CharSpan] | None:
    """The spans of the only word in which two texts differ; None if there is none, or more than one."""
    differing = _different_words(first, second)
    return differing[0] if len(differing) == 1 else None


def _different_words(first: str, second: str) -> list[tuple[CharSpan, CharSpan]]:
    """The spans of the words in which two texts differ; none where they have not equally many words."""
    one, two = list(_WORD.finditer(first)), list(_WORD.finditer(second))
    if len(one) != len(two):
        return []
    return [(a.span(), b.span()) for a, b in zip(one, two, strict=True) if a.group() != b.group()]


def _spans_of(word: str, text: str) -> list[CharSpan]:
    return [match.span() for match in _WORD.finditer(text) if match.group() == word]


def _without_names(text: str, names: dict[CharSpan, str]) -> str:
    for (start, end), letter in sorted(names.items(), reverse=True):
        text = text[:start] + letter + text[end:]
    return text


COMPONENT = EapIg

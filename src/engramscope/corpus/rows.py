"""Tables as articles: which column holds what, and the rows of CSV, Parquet and JSON-lines files."""

from __future__ import annotations

import ast
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from engramscope.corpus.articles import Article
from engramscope.corpus.records import bare_doi, bare_pmid, year_in
from engramscope.errors import InputError

#: names under which other tools export what a corpus has; compared without case, spaces and punctuation
ALIASES: Mapping[str, tuple[str, ...]] = {
    "PMID": ("pmid", "pubmedid", "pubmed"),
    "Title": ("title", "articletitle"),
    "Abstract": ("abstract", "abstracttext"),
    "Journal": ("journal", "journaltitle", "journalbook", "journalname"),
    "Keywords": ("keywords", "keyword", "authorkeywords"),
    "URL": ("url", "link"),
    "Year": ("year", "publicationyear", "pubyear", "pubdate", "publicationdate"),
    "DOI": ("doi",),
    "Language": ("language", "languages"),
    "PublicationType": ("publicationtype", "publicationtypes", "pubtype"),
}
_SEVERAL = ("Keywords", "Language", "PublicationType")
_TEXTS = tuple(name for name in ALIASES if name not in _SEVERAL)
_Read = TypeVar("_Read", str, tuple[str, ...])
_LISTS = re.compile(r"[;|]")
_TEXT = r"'(?:[^'\\]|\\.)*'" + r'|"(?:[^"\\]|\\.)*"'
#: a list as Python and numpy write one into a cell: ['a', 'b', None], ['a' 'b']
_WRITTEN_LIST = re.compile(rf"\s*\[\s*(?:(?:{_TEXT}|None|nan)[\s,]*)*\]\s*")
_ROWS = 512
#: a row beyond this, and a cell of a table with it, is taken for damage (a quote that is never closed)
_MOST_CELL = 131_072


def column_map(names: Iterable[str], chosen: Mapping[str, str]) -> dict[str, str]:
    """Which column of a table holds what.

    Args:
        names: the columns of the table.
        chosen: what the user says, {"Abstract": "text"}; the case of both is free, and "" is for no column.

    Returns:
        {"Abstract": name in the table, …}; what is not there is missing.

    Raises:
        InputError: there is no abstract column, a chosen one is not there, or two columns could be the same thing.
    """
    present = list(names)
    faults: list[str] = []
    found: dict[str, str] = {}
    wanted = {_bare(key): value for key, value in chosen.items()}
    known = {_bare(name): name for name in ALIASES}
    faults += [f"--columns names {key!r}; known are {', '.join(ALIASES)}" for key in chosen if _bare(key) not in known]
    for target, aliases in ALIASES.items():
        asked = wanted.get(_bare(target))
        if asked == "":
            matches = []
        elif asked is not None:
            matches = [name for name in present if name == asked] or [n for n in present if _bare(n) == _bare(asked)]
            if not matches:
                faults.append(f"there is no column {asked!r} for {target}; found are {_listed(present)}")
        else:
            matches = next((m for alias in aliases if (m := [n for n in present if _bare(n) == alias])), [])
        if len(matches) > 1:
            faults.append(f"both {' and '.join(matches)} could be {target}; say which with --columns {target}=NAME")
        if matches:
            found[target] = matches[0]
    if "Abstract" not in found and not faults:
        faults.append(
            f"there is no abstract column; found are {_listed(present)}. If one of them holds the abstracts, "
            "say so with --columns Abstract=NAME"
        )
    if faults:
        raise InputError(faults)
    return found


def csv_rows(handle: IO[bytes], columns: Mapping[str, str]) -> Iterator[Article]:
    """The rows of a CSV file (comma, semicolon or tab, as its first line has it), quoted as RFC 4180 says.

    Raises:
        InputError: columns (see `column_map`), a row with more or fewer cells than the header, a quote left open.
    """
    with io.TextIOWrapper(handle, encoding="utf-8-sig", newline="") as text:
        first = text.readline()
        if not first.strip():
            raise InputError("its first line, which should name the columns, is empty")
        delimiter = max(",;\t", key=first.count)
        reader = csv.reader(_with_first(first, text), delimiter=delimiter, strict=True)
        try:
            header = [name.strip() for name in next(reader)]
            mapping = column_map(header, columns)
            places = {target: header.index(name) for target, name in mapping.items()}
            for number, row in enumerate(reader, start=2):
                if not row:
                    continue
                if len(row) != len(header):
                    raise InputError(
                        f"row {number} (line {reader.line_num}) has {len(row)} cells, the header {len(header)}"
                    )
                yield article_of_row({target: row[place] for target, place in places.items()})
        except csv.Error as error:
            why = f"a cell is longer than {_MOST_CELL:,} characters" if "field limit" in str(error) else str(error)
            raise InputError(f"line {reader.line_num}: {why}; is a quotation mark not closed?") from None


def jsonl_rows(handle: IO[bytes], columns: Mapping[str, str]) -> Iterator[Article]:
    """The objects of a JSON-lines file; the abstract column may be missing in some, but not in the first.

    Raises:
        InputError: a line that is no object, or columns (see `column_map`).
    """
    mapping: dict[str, str] = {}
    names: dict[str, None] = {}
    with io.TextIOWrapper(handle, encoding="utf-8-sig") as text:
        for number, line in enumerate(text, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"line {number} is no JSON: {error}") from None
            if not isinstance(row, dict):
                raise InputError(f"line {number} is no JSON object with the columns as keys, but {type(row).__name__}")
            if not row.keys() <= names.keys():
                # a key that no earlier line had may be one of the columns
                names |= dict.fromkeys(row)
                mapping = column_map(names, columns)
            yield _article({target: row.get(name) for target, name in mapping.items()}, f"line {number}")
    if not mapping:
        raise InputError("it holds no object with an abstract")


def parquet_rows(path: Path, columns: Mapping[str, str], watch: Callable[[int], None] | None) -> Iterator[Article]:
    """The rows of a Parquet file, a few hundred at a time.

    Raises:
        InputError: no Parquet file, or columns (see `column_map`).
    """
    try:
        with pq.ParquetFile(path, memory_map=False, pre_buffer=False) as file:
            mapping = column_map(file.schema_arrow.names, columns)
            names = list(dict.fromkeys(mapping.values()))
            done, size = 0, path.stat().st_size
            for batch in file.iter_batches(_ROWS, columns=names):
                for number, row in enumerate(batch.to_pylist(), start=done + 1):
                    yield _article({target: row[name] for target, name in mapping.items()}, f"row {number}")
                done += batch.num_rows
                if watch:
                    watch(size * done // max(file.metadata.num_rows, 1))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"it cannot be read as Parquet: {' '.join(str(error).split())[:300]}") from None


def _article(row: Mapping[str, Any], place: str) -> Article:
    try:
        return article_of_row(row)
    except InputError as error:
        raise InputError([f"{place}: {fault}" for fault in error.faults]) from None


def article_of_row(row: Mapping[str, Any]) -> Article:
    """An article from a row whose keys are those of `ALIASES`; absent and null cells are "".

    Raises:
        InputError: a cell holds an object, or bytes that are no text.
    """
    texts, lists = _read(row, _TEXTS, _cell), _read(row, _SEVERAL, _list)
    return Article(
        pmid=bare_pmid(texts["PMID"]),
        title=texts["Title"],
        abstract=texts["Abstract"],
        journal=texts["Journal"],
        keywords=lists["Keywords"],
        url=texts["URL"].strip(),
        year=year_in(texts["Year"]),
        doi=bare_doi(texts["DOI"]),
        languages=lists["Language"],
        types=lists["PublicationType"],
    )


def _read(row: Mapping[str, Any], names: Iterable[str], how: Callable[[Any], _Read]) -> dict[str, _Read]:
    found: dict[str, _Read] = {}
    for name in names:
        try:
            found[name] = how(row.get(name))
        except InputError as error:
            way_out = "" if name == "Abstract" else f", or leave it out with --columns {name}="
            raise InputError([f"{name}: {fault}{way_out}" for fault in error.faults]) from None
    return found


def _cell(value: Any) -> str:
    if value is None or value != value:  # not a number: how other tools write an empty cell
        return ""
    if isinstance(value, list | tuple):
        return " ".join(_cell(one) for one in value)
    if isinstance(value, Mapping):
        raise InputError(
            f"a cell holds an object with the keys {_listed([str(key) for key in value])}, not text; give what is "
            "meant a column of its own"
        )
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"a cell holds bytes that are no text in UTF-8 (byte {error.start})") from None
    return str(value)


def _list(value: Any) -> tuple[str, ...]:
    parts = value if isinstance(value, list | tuple) else _parts(_cell(value))
    return tuple(dict.fromkeys(text for part in parts if (text := _cell(part).strip())))


def _parts(text: str) -> list[str]:
    """The entries of a list that stands in one cell."""
    if text.lstrip().startswith("["):
        with suppress(ValueError, RecursionError):
            return [_cell(one) for one in json.loads(text)]
    if _WRITTEN_LIST.fullmatch(text):
        with suppress(ValueError, SyntaxError):  # an escape that is none
            return [ast.literal_eval(one) for one in re.findall(_TEXT, text)]
    return _LISTS.split(text)


def _bare(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name[:60]) for name in names[:30])
    return shown + (f" and {len(names) - 30} more" if len(names) > 30 else "") if names else "none"


def _with_first(first: str, rest: Iterable[str]) -> Iterator[str]:
    yield first
    yield from rest

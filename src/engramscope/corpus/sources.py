"""Local files as streams of articles: PubMed XML, CSV, Parquet and JSON lines, compressed or not."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from engramscope.corpus.articles import Article, Withdrawal
from engramscope.corpus.records import article_of
from engramscope.corpus.rows import csv_rows, jsonl_rows, parquet_rows
from engramscope.corpus.xml_stream import AnswerError, iterate_records
from engramscope.errors import InputError

#: called with the bytes of all files that have been read so far
Watch = Callable[[int], None]

KINDS: Mapping[str, str] = {
    ".xml": "xml", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".pq": "parquet",
    ".jsonl": "jsonl", ".ndjson": "jsonl",
}  # fmt: skip
#: ending, and the bytes that such a file begins with
_COMPRESSED: Mapping[str, bytes] = {".gz": b"\x1f\x8b", ".bz2": b"BZh", ".xz": b"\xfd7zXZ\x00"}
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Source:
    """Files that are read one after the other, as often as needed.

    Args:
        paths: of the files.
        columns: which column of a table holds what, as {"Abstract": "text"}, where the names do not say it.
    """

    paths: tuple[Path, ...]
    columns: Mapping[str, str]

    def articles(self, watch: Watch | None = None) -> Iterator[Article | Withdrawal]:
        """Every record of every file.

        Raises:
            InputError: a file is not what its name says, or a row is malformed; names the file and the place.
        """
        done = 0
        for path in self.paths:
            before = done
            yield from _read(path, self.columns, (lambda more, b=before: watch(b + more)) if watch else None)
            done += path.stat().st_size

    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.paths)


def open_source(paths: Sequence[Path | str], columns: Mapping[str, str] | None = None) -> Source:
    """A source of files that exist, are files, and have endings that are known; their columns are looked at.

    Raises:
        InputError: every file that cannot be read, with the reason.
    """
    source = Source(tuple(Path(path) for path in paths), dict(columns or {}))
    if not source.paths:
        raise InputError("no file to read was given.")
    faults: list[str] = []
    for path in source.paths:
        try:
            _kind(path)
            # the first record is enough to see that the columns are there
            next(_read(path, source.columns, None), None)
        except InputError as error:
            faults += error.faults
    if faults:
        raise InputError(faults)
    return source


def _kind(path: Path) -> tuple[str, str]:
    """What a file is and how it is compressed ("" if it is not), by its name and by its first bytes."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the files in it.")
    if not path.is_file():
        raise InputError(f"{path}: there is no such file.")
    endings = [one.lower() for one in path.suffixes]
    packed = endings.pop() if endings and endings[-1] in _COMPRESSED else ""
    kind = KINDS.get(endings[-1], "") if endings else ""
    if not kind:
        raise InputError(
            f"{path}: its name does not say what it is; known are {', '.join(KINDS)}, each also with .gz, .bz2 or .xz."
        )
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty.")
    with path.open("rb") as handle:
        start = handle.read(8)
    if packed and not start.startswith(_COMPRESSED[packed]):
        raise InputError(f"{path} is named {packed}, but its content is not compressed in that way.")
    if kind == "parquet" and packed:
        raise InputError(f"{path}: a Parquet file is compressed inside; unpack {packed} first.")
    # a download that was unpacked or packed on its way keeps the old name
    return kind, packed or next((ending for ending, magic in _COMPRESSED.items() if start.startswith(magic)), "")


def _read(path: Path, columns: Mapping[str, str], watch: Watch | None) -> Iterator[Article | Withdrawal]:
    kind, packed = _kind(path)
    try:
        if kind == "parquet":
            yield from parquet_rows(path, columns, watch)
            return
        with path.open("rb") as raw, _unpacked(_Watched(raw, watch), packed) as handle:
            if kind == "xml":
                yield from _xml(handle)
            elif kind == "csv":
                yield from csv_rows(handle, columns)
            else:
                yield from jsonl_rows(handle, columns)
    except AnswerError as error:
        raise InputError(f"{path} holds no records but an error of the E-utilities: {error}.") from None
    except InputError as error:
        raise InputError([f"{path}: {fault.rstrip('.')}." for fault in error.faults]) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text in UTF-8 (byte {error.start} of a block: {error.reason}).") from None
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, OSError) as error:
        if packed:
            raise InputError(f"{path} cannot be unpacked ({error}); is it cut off?") from None
        raise


def _xml(handle: IO[bytes]) -> Iterator[Article | Withdrawal]:
    for record in iterate_records(iter(lambda: handle.read(_CHUNK), b"")):
        yield from article_of(record)


def _unpacked(raw: io.RawIOBase, packed: str) -> IO[bytes]:
    buffered = io.BufferedReader(raw, _CHUNK)
    if packed == ".gz":
        return gzip.GzipFile(fileobj=buffered, mode="rb")  # pyright: ignore[reportReturnType]
    if packed == ".bz2":
        return bz2.BZ2File(buffered)
    if packed == ".xz":
        return lzma.LZMAFile(buffered)
    return buffered


class _Watched(io.RawIOBase):
    """A raw file that tells how many of its bytes have been read."""

    def __init__(self, raw: IO[bytes], watch: Watch | None) -> None:
        self._raw, self._watch, self._done = raw, watch, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        data = self._raw.read(len(buffer))
        buffer[: len(data)] = data
        self._done += len(data)
        if self._watch:
            self._watch(self._done)
        return len(data)

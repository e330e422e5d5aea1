"""Reads reference texts from a file, however large: only what is asked for is kept."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Collection, Iterator
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, Protocol

from engramscope.errors import InputError
from engramscope.evaluate.reference import DocumentCounts, References

_CHUNK = 2**20
_SPACE = " \t\r\n"


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


def read_references(
    path: Path | str, keys: Collection[str] | None = None, subjects: Collection[str] = (), *,
    progress: Callable[[str, int, int], None] | None = None,
) -> References:  # fmt: skip
    """Read reference texts in the schema of `attribute_snippets.json`.

    The file is a JSON list of objects with `relation_id`, `target_id` and `samples`, a list of objects with `text` and,
    where it is known whom the text is about, `name`. It is read once, an object at a time: words are counted over all
    of its texts, its SHA-256 is taken on the way, and only texts that are asked for stay in memory.

    Args:
        path: the file.
        keys: `Record.reference` of the records that will be evaluated ("P103|Q150"); all by default.
        subjects: names of whom the texts about them are wanted, too (for essence).
        progress: called with (what, done, total) in bytes.

    Raises:
        InputError: the file cannot be read, or is not in that schema; says which entry.
    """
    path = Path(path)
    texts: dict[str, list[str]] = {}
    about: dict[str, list[str]] = {}
    counts, digest = DocumentCounts(), sha256()
    try:
        total = path.stat().st_size
        with path.open("rb") as handle:
            for number, entry in enumerate(_entries(handle, digest, path)):
                key, samples = _checked(entry, number, path)
                for text, name in samples:
                    counts.add(text)
                    if keys is None or key in keys:
                        texts.setdefault(key, []).append(text)
                    if name in subjects:
                        about.setdefault(str(name), []).append(text)
                if progress:
                    progress("reference texts", handle.tell(), total)
    except OSError as error:
        raise InputError(f"The reference texts {path} could not be read: {error.strerror or error}.") from None
    return References(texts, counts.fitted(), about, str(path), digest.hexdigest())


def _entries(handle: IO[bytes], digest: _Hash, path: Path) -> Iterator[Any]:
    """The items of a JSON list, one at a time; every byte of the file goes into the digest."""
    decoder, text = json.JSONDecoder(), _Text(handle, digest)
    try:
        if text.next_character() != "[":
            raise InputError(f"The reference texts {path} are not a JSON list.")
        text.drop(1)
        while (character := text.next_character()) != "]":
            if character == ",":
                text.drop(1)
                continue
            yield text.value(decoder)
        text.drop(1)
        if text.next_character():
            raise InputError(f"The reference texts {path} go on after the end of the list.")
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"The reference texts {path} are not valid JSON: {error}.") from None


class _Text:
    """The text of a file, as much of it as is needed."""

    def __init__(self, handle: IO[bytes], digest: _Hash) -> None:
        self._handle, self._digest = handle, digest
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._text, self._start, self._ended = "", 0, False

    def next_character(self) -> str:
        """The first character that is not white space; empty at the end of the file."""
        while True:
            while self._start < len(self._text):
                if self._text[self._start] not in _SPACE:
                    return self._text[self._start]
                self._start += 1
            if not self._more(_CHUNK):
                return ""

    def drop(self, count: int) -> None:
        """Go on behind so many characters."""
        self._start += count

    def value(self, decoder: json.JSONDecoder) -> Any:
        """The JSON object that begins here; other values are not told from their beginnings."""
        size = _CHUNK
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self._start)
            except json.JSONDecodeError:
                # it may only be cut off; twice as much each time, so that a long value is not parsed over and over
                if not self._more(size):
                    raise
                size *= 2
                continue
            self._start = end
            return value

    def _more(self, size: int) -> bool:
        if self._ended:
            return False
        data = self._handle.read(size)
        self._digest.update(data)
        self._ended = not data
        self._text = self._text[self._start :] + self._decode(data, final=self._ended)
        self._start = 0
        return not self._ended


def _checked(entry: Any, number: int, path: Path) -> tuple[str, list[tuple[str, str | None]]]:
    """Key and (text, name) of an entry."""
    where = f"The reference texts {path}, entry {number}"
    if not isinstance(entry, dict):
        raise InputError(f"{where}: expected an object with relation_id, target_id and samples.")
    if missing := [name for name in ("relation_id", "target_id", "samples") if name not in entry]:
        raise InputError(f"{where}: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing.")
    samples = entry["samples"]
    if not isinstance(samples, list):
        raise InputError(f"{where}: samples is not a list.")
    found: list[tuple[str, str | None]] = []
    for index, sample in enumerate(samples):
        text = sample.get("text") if isinstance(sample, dict) else None
        if not isinstance(text, str):
            raise InputError(f"{where}, sample {index}: there is no text.")
        name = sample.get("name")
        found.append((text, name if isinstance(name, str) else None))
    return f"{entry['relation_id']}|{entry['target_id']}", found

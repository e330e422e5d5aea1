"""Outcomes on disk as they come: a line for each, which is there in full or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

from engramscope.errors import ResultsError
from engramscope.results.atomic import disk_sentence, jsonable

#: bytes of the check sum in front of a line, and the space after it
_SUM = 9


class Journal:
    """An append-only file of JSON objects, one a line, each behind the check sum of its text.

    A line that a killed process left half-written, or that is damaged, ends what can be read; it and what follows is
    dropped when the next line is appended. So whoever reads a journal finds the outcomes up to some point, each whole.

    Args:
        path: the file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """The outcomes, in the order in which they were appended.

        Raises:
            ResultsError: the file cannot be read.
        """
        return self._sound()[0]

    def append(self, outcome: Mapping[str, Any]) -> None:
        """Add an outcome and force it to the disk; numbers that are not finite become null.

        Raises:
            ResultsError: the disk refuses.
        """
        text = json.dumps(jsonable(outcome), ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")
        try:
            with self.path.open("ab") as file:
                file.write(_line(text))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ResultsError(disk_sentence(self.path, error)) from None

    def mend(self) -> None:
        """Cut off what a killed process left half-written; to be called once, by who appends.

        Raises:
            ResultsError: the disk refuses.
        """
        _, length = self._sound()
        try:
            if self.path.exists() and self.path.stat().st_size != length:
                os.truncate(self.path, length)
        except OSError as error:
            raise ResultsError(disk_sentence(self.path, error)) from None

    def _sound(self) -> tuple[list[dict[str, Any]], int]:
        """The outcomes that are whole, and how many bytes they take."""
        try:
            data = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise ResultsError(f"{self.path} could not be read: {error.strerror or error}.") from None
        found: list[dict[str, Any]] = []
        length = 0
        for line in data.splitlines(keepends=True):
            text = line[_SUM:-1]
            if not line.endswith(b"\n") or line != _line(text):
                break
            found.append(json.loads(text))
            length += len(line)
        return found, length


def _line(text: bytes) -> bytes:
    return b"%08x %s\n" % (crc32(text), text)

"""What a reader of pair files is, and what all of them need."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engramscope.errors import PairsError
from engramscope.pairs.pair import Pair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_FAULTS = 20
_HEAD = 65_536


@dataclass(frozen=True)
class Source:
    """A file that is being read.

    Attributes:
        path: where it is.
        data: its bytes.
        tokenizer: for formats that hold token ids.
    """

    path: Path
    data: bytes = field(repr=False)
    tokenizer: PreTrainedTokenizerBase | None = None

    @classmethod
    def open(cls, path: Path, tokenizer: PreTrainedTokenizerBase | None = None, what: str = "pair file") -> Source:
        """Read the file; messages call it `what`.

        Raises:
            PairsError: it does not exist, cannot be read, or is empty.
        """
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise PairsError(f"There is no {what} {str(path)!r}.") from None
        except OSError as error:
            raise PairsError(f"The {what} {str(path)!r} cannot be read: {error.strerror or error}.") from None
        if not data.strip(b"\xef\xbb\xbf \t\r\n"):
            raise PairsError(f"The {what} {path.name} is empty.")
        return cls(path, data, tokenizer)

    @property
    def name(self) -> str:
        """The file's name, for messages."""
        return self.path.name

    @property
    def suffix(self) -> str:
        """The extension in lower case, with its dot."""
        return self.path.suffix.lower()

    @cached_property
    def head(self) -> str:
        """The beginning of the file as text, for telling its format; undecodable bytes are replaced."""
        return self.data[:_HEAD].removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").lstrip()

    @cached_property
    def text(self) -> str:
        """The whole file as text, without a byte order mark.

        Raises:
            PairsError: not UTF-8; names the line.
        """
        try:
            return self.data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = self.data[: error.start].count(b"\n") + 1
            raise PairsError(f"{self.name}, line {line}: the file is not UTF-8 text; save it as UTF-8.") from None

    def json(self) -> Any:
        """The whole file as one JSON value.

        Raises:
            PairsError: not JSON; names the line.
        """
        try:
            return json.loads(self.text)
        except json.JSONDecodeError as error:
            raise PairsError(f"{self.name}, line {error.lineno}: not valid JSON ({error.msg}).") from None
        except (RecursionError, ValueError):
            raise PairsError(
                f"{self.name}: its JSON is nested too deeply, or holds a number that is too long."
            ) from None


@dataclass
class Faults:
    """Collects what is wrong with a file, so that all of it can be told at once.

    Args:
        name: the file.
    """

    name: str
    sentences: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, where: str, what: str) -> None:
        """Note one fault, for example at "line 3"."""
        self.count += 1
        if len(self.sentences) < _MAX_FAULTS:
            self.sentences.append(f"{self.name}, {where}: {what}.")

    def check(self) -> None:
        """Raise if there is a fault.

        Raises:
            PairsError: one sentence per fault, up to 20, and how many more there are.
        """
        if self.count:
            rest = self.count - len(self.sentences)
            raise PairsError([*self.sentences, *([f"{self.name}: {rest} more faults."] if rest else [])])


class Reader(ABC):
    """Reads one format."""

    @classmethod
    @abstractmethod
    def recognises(cls, source: Source) -> int:
        """How surely the file is of this format: 2 its beginning says so, 1 its extension says so, 0 neither."""

    @abstractmethod
    def read(self, source: Source) -> list[Pair]:
        """The pairs, in the order of the file.

        Raises:
            PairsError: every fault of the file, up to 20.
        """


def texts_of(row: object, keys: Sequence[str], where: str, faults: Faults) -> dict[str, str] | None:
    """The values of `keys`, all of which must be texts that are not empty; None (and a fault) otherwise."""
    if not isinstance(row, dict):
        faults.add(where, f"expected an object with {', '.join(keys)}, found {kind(row)}")
        return None
    found: dict[str, str] = {}
    for key in keys:
        value = row.get(key)
        if key not in row:
            faults.add(where, f"{key!r} is missing")
        elif not isinstance(value, str) or not value:
            faults.add(where, f"{key!r} must be a text that is not empty, found {kind(value)}")
        elif not is_unicode(value):
            faults.add(where, f"{key!r} holds half a character (a lone surrogate)")
        else:
            found[key] = value
    return found if len(found) == len(keys) else None


def objects_of(value: object, where: str, faults: Faults) -> list[object]:
    """The value as a list; a fault if it is none."""
    if isinstance(value, list):
        return value
    faults.add(where, f"expected a list of objects, found {kind(value)}")
    return []


def kind(value: object) -> str:
    """A value's kind and, where short, the value, for messages."""
    names = {
        dict: "an object", list: "a list", str: "a text", bool: "a truth value", int: "a number", float: "a number",
    }  # fmt: skip
    if value is None:
        return "nothing"
    shown = repr(value)
    return names.get(type(value), type(value).__name__) + (f" ({shown})" if len(shown) <= 60 else "")


def is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8 (JSON can smuggle in half a character)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def spaced(answer: str) -> str:
    """The answer with the one leading space that a word after a prompt needs."""
    return " " + answer.strip()

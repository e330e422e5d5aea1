"""Readers of pair files: one file for each format, found by its name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engramscope.errors import PairsError
from engramscope.pairs.pair import PairSet
from engramscope.pairs.readers._base import Reader, Source
from engramscope.registry import Registry

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

READERS: Registry[Reader] = Registry("engramscope.pairs.readers", Reader, "pair format")


def format_names() -> tuple[str, ...]:
    """The names of all pair formats, sorted."""
    return READERS.names()


def read_pairs(
    path: str | Path, format: str | None = None, tokenizer: PreTrainedTokenizerBase | None = None
) -> PairSet:
    """The pairs of a file.

    Args:
        path: the file.
        format: the name of its format; None to tell it from the file's beginning and its extension.
        tokenizer: for files that hold token ids; they are checked against it.

    Raises:
        PairsError: unreadable, empty, of no known format, or at fault; every fault of it, up to 20.
        UnknownNameError: no format has this name.
    """
    source = Source.open(Path(path), tokenizer)
    reader = READERS.get(format or _detect(source))()
    pairs = reader.read(source)
    if not pairs:
        raise PairsError(f"{source.name} holds no pairs.")
    return PairSet(tuple(pairs), source.name)


def _detect(source: Source) -> str:
    scores = {name: READERS.get(name).recognises(source) for name in format_names()}
    best = max(scores.values())
    found = [name for name, score in scores.items() if score == best]
    if best == 0 or len(found) > 1:
        raise PairsError(
            f"The format of {source.name} cannot be told from its beginning; name it (format = …). "
            f"Known: {', '.join(found if best else format_names())}."
        )
    return found[0]

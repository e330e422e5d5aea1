"""Passages of text to train editors on, from a file."""

from __future__ import annotations

from pathlib import Path

from engramscope.errors import InputError


def read_passages(path: Path) -> list[str]:
    """The passages of a text file: parted by empty lines, or a line each where it has none.

    Raises:
        InputError: it cannot be read, is no text in UTF-8, or is empty.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(
            f"There is no text file {path}; --texts takes a file, a corpus folder, or 'bundled'."
        ) from None
    except OSError as error:
        raise InputError(f"{path} could not be read ({error.strerror or error}).") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text in UTF-8: byte {error.start} cannot be read.") from None
    lines = [line.strip() for line in text.splitlines()]
    if "" in lines[:-1]:
        blocks = "\n".join(lines).split("\n\n")
        found = [block.strip() for block in blocks if block.strip()]
        # empty lines only at the ends do not part anything
        found = found if len(found) > 1 else [line for line in lines if line]
    else:
        found = [line for line in lines if line]
    if not found:
        raise InputError(f"{path} holds no text.")
    return found

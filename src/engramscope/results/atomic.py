"""Files that are either written in full or not at all: temporary file, fsync, rename."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from engramscope.errors import ResultsError

TEMPORARY_PREFIX = ".engramscope-"
TEMPORARY_SUFFIX = ".tmp"


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes its place under `path` only when the block ends without an error.

    The bytes go to a temporary file of the same folder, are forced to the disk, and the file is renamed over `path`.
    Whatever stops the block (an error, Ctrl-C), `path` keeps its earlier content and the temporary file is removed.

    Raises:
        ResultsError: the operating system refuses: the disk is full, no permission, the folder is missing.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name[:80]}-{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("xb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise ResultsError(disk_sentence(path, error)) from None
    finally:
        # after a successful rename the name is gone; otherwise nothing half-written may stay behind
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, in full or not at all.

    Raises:
        ResultsError: see `atomic_file`.
    """
    with atomic_file(path) as handle:
        handle.write(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, in full or not at all; line ends are kept as they are.

    Raises:
        ResultsError: see `atomic_file`.
    """
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object to `path`, in full or not at all. `NaN` and infinities become `null`.

    Raises:
        ResultsError: see `atomic_file`.
        TypeError: something in `value` is no JSON value (an error of the caller).
    """
    write_text(path, json.dumps(jsonable(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table as Parquet with page checksums, in full or not at all.

    Raises:
        ResultsError: see `atomic_file`.
    """
    with atomic_file(path) as handle:
        pq.write_table(table, handle, write_page_checksum=True)


def remove_temporary_files(folder: Path) -> None:
    """Remove what a killed process left half-written in `folder`. Only for whoever holds the folder's lock."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*{TEMPORARY_SUFFIX}"):
        with suppress(OSError):
            path.unlink()


def disk_sentence(path: Path, error: OSError) -> str:
    """One sentence for a person about what the operating system refused at `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{path} could not be written: the disk is full ({error.strerror}). "
            "Make room and run the study again with --resume; nothing that was complete is lost."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{path} could not be written: no permission ({error.strerror}). Choose a folder that you may write to."
    return f"{path} could not be written: {error.strerror or error}."


def jsonable(value: Any) -> Any:
    """`value` with numpy scalars as Python numbers, tuples as lists, and non-finite numbers as None."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if hasattr(value, "tolist") and not isinstance(value, str | bytes):
        return jsonable(value.tolist())
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    return str(value) if isinstance(value, Path) else value


def _sync_folder(folder: Path) -> None:
    # the rename itself must survive a power cut; not every file system can do this, and then it is not an error
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

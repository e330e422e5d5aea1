"""Folders that hold the results folders of several studies."""

from __future__ import annotations

from pathlib import Path

from engramscope.errors import ResultsError
from engramscope.results.atomic import TEMPORARY_PREFIX, TEMPORARY_SUFFIX
from engramscope.results.lock import LOCK_NAME


def refuse_occupied(folder: Path, resume: bool | None = None) -> None:
    """Refuse a file, and a folder that holds anything, unless its run is to go on.

    Args:
        folder: where something is to be written.
        resume: whether the run there is to go on; None where no run can.

    Raises:
        ResultsError: says which of the two, and what to do.
    """
    if folder.exists() and not folder.is_dir():
        raise ResultsError(f"{folder} is a file; give the name of a folder for the results.")
    if not resume and folder.is_dir() and not is_empty(folder):
        other = "" if resume is None else ", or go on there with --resume"
        raise ResultsError(f"{folder} is not empty; give a new folder{other}.")


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing, or nothing but empty folders and what a killed run has left half-written."""
    return all(
        is_scrap(path.name) or (path.is_dir() and not path.is_symlink() and is_empty(path)) for path in folder.iterdir()
    )


def is_scrap(name: str) -> bool:
    """Whether a file is the lock, or what a killed run left half-written."""
    return name == LOCK_NAME or (name.startswith(TEMPORARY_PREFIX) and name.endswith(TEMPORARY_SUFFIX))

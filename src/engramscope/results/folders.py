"""Folders that hold the results folders of several studies."""

from __future__ import annotations

from pathlib import Path

from engramscope.errors import ResultsError


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
    if not resume and folder.is_dir() and any(folder.iterdir()):
        other = "" if resume is None else ", or go on there with --resume"
        raise ResultsError(f"{folder} is not empty; give a new folder{other}.")

"""Folders that hold the results folders of several studies."""

from __future__ import annotations

from pathlib import Path

from engramscope.errors import ResultsError


def refuse_occupied(folder: Path, resume: bool) -> None:
    """Refuse a file, and a folder that holds anything, unless its run is to go on.

    Raises:
        ResultsError: says which of the two, and what to do.
    """
    if folder.exists() and not folder.is_dir():
        raise ResultsError(f"{folder} is a file; give the name of a folder for the results.")
    if not resume and folder.is_dir() and any(folder.iterdir()):
        raise ResultsError(f"{folder} is not empty; give a new folder, or go on there with --resume.")

"""Files by their path, or by the name of their public home."""

from __future__ import annotations

from pathlib import Path

from engramscope.records.download import Progress, download
from engramscope.records.homes import HOMES


def located(name: str | Path, progress: Progress | None = None) -> Path:
    """Where a file is; what has a public home is downloaded from there, unless it is in the cache.

    Args:
        name: a path, or the name of a public home ("counterfact", "known_1000", …). A file or folder of that name comes
            first.
        progress: called with what is done, bytes done and bytes in all.

    Raises:
        DownloadError: not reached, refused, or not the file that was expected.
        ResultsError: another process downloads to the same folder.
    """
    path = Path(name)
    if path.exists() or str(name) not in {home.name for home in HOMES}:
        return path
    return download(str(name), progress=progress).path

"""The demonstration: CLAP's question asked of a small bundled model, to the standard of best practices."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

from engramscope.errors import ResultsError

if TYPE_CHECKING:
    from engramscope.locate.experiment import Progress
    from engramscope.study import StudyResult

#: name of the study file -> folder below the demo's; the first is the answer, the others stand beside it
STUDIES = {"epilepsy.toml": ".", "clap_tables.toml": "clap_tables"}

#: what a study leaves in its folder, and the folder of the second study
_OURS = frozenset(
    {"study.toml", "manifest.json", "pairs.parquet", "effects.parquet", "summary.csv", "report.html", "figures",
     ".parts", ".lock", "clap_tables"}
)  # fmt: skip


def run_demo(out: Path, *, progress: Progress | None = None) -> list[StudyResult]:
    """Run the demonstration's studies.

    Args:
        out: the results folder. An earlier demonstration in it is replaced; anything else is refused.
        progress: called with (what, done, total).

    Returns:
        The studies; the main one first.

    Raises:
        ResultsError: the folder holds something that is not an earlier demonstration.
    """
    from engramscope.study import run_study

    _make_room(out)
    results = []
    for name, folder in STUDIES.items():
        with as_file(files("engramscope.demo") / name) as study:
            results.append(run_study(study, out / folder, progress=progress))
    return results


def _make_room(out: Path) -> None:
    import shutil

    from engramscope.results.read import read_manifest

    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if read_manifest(out).get("name") != "epilepsy demonstration":
        raise ResultsError(f"{out} holds another study; give the demonstration a folder of its own with --out.")
    # only what a demonstration leaves behind is removed: whatever else lies there is somebody's
    others = sorted(path.name for path in out.iterdir() if path.name not in _OURS)
    if others:
        raise ResultsError(
            f"{out} holds an earlier demonstration, which would be replaced, and also {', '.join(others[:5])}, which "
            "is not part of it; move that away, or give another folder with --out."
        )
    shutil.rmtree(out)

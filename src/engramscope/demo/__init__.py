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


def run_demo(out: Path, *, progress: Progress | None = None) -> StudyResult:
    """Run the demonstration's studies.

    Args:
        out: the results folder. An earlier demonstration in it is replaced; anything else is refused.
        progress: called with (what, done, total).

    Returns:
        The main study.

    Raises:
        ResultsError: the folder holds something that is not an earlier demonstration.
    """
    from engramscope.study import run_study

    _make_room(out)
    results = []
    for name, folder in STUDIES.items():
        with as_file(files("engramscope.demo") / name) as study:
            results.append(run_study(study, out / folder, progress=progress))
    return results[0]


def _make_room(out: Path) -> None:
    import shutil

    from engramscope.results.read import read_manifest

    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    manifest = read_manifest(out)
    if manifest.get("name") != "epilepsy demonstration":
        raise ResultsError(f"{out} holds another study; give the demonstration a folder of its own with --out.")
    shutil.rmtree(out)

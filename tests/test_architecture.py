"""The rooms of the package import one way only, and what is found by its name needs no central list."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

import engramscope

SOURCE = Path(engramscope.__file__).parent

#: a room may import itself and the rooms above its own line; the order is the architecture
ORDER = [
    {"errors"},
    {"registry"},
    {"options"},
    {"stats", "pairs", "metrics", "study_file", "bundled"},
    {"results"},
    {"records"},
    {"models"},
    {"engine"},
    {"corruptions"},
    {"locate", "tasks"},
    {"edit"},
    {"evaluate"},
    {"audit", "report", "provenance", "catalogue", "starter"},
    {"sweep_faults"},
    {"study_inputs"},
    {"study_base"},
    {"study_steps"},
    {"study", "patching"},
    {"corpus"},
    {"finetune", "questions"},
    {"demo", "practices", "recommendation", "comparison", "replications"},
    {"clap", "editing", "locate_edit"},
    {"cli"},
]
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}

#: imports that would break a promise of the design even where the order allows them
FORBIDDEN = {
    "stats": {"results", "models", "engine", "locate", "pairs", "metrics"},
    "metrics": {"engine", "models", "pairs"},
    "pairs": {"engine", "models", "metrics"},
    "engine": {"tasks", "pairs", "metrics", "study_file", "corruptions"},
    "report": {"stats", "models", "engine", "locate", "pairs", "metrics", "study_file", "audit", "corruptions"},
}


def room(path: Path) -> str:
    relative = path.relative_to(SOURCE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "engramscope":
            parts = node.module.split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            rooms |= {a.name.split(".")[1] for a in node.names if a.name.startswith("engramscope.")}
    return rooms


FILES = sorted(path for path in SOURCE.rglob("*.py") if path.name != "__init__.py" or path.parent != SOURCE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_one_way(path: Path) -> None:
    own = room(path)
    assert own in RANK, f"{own} has no place in the architecture: add it to ORDER"
    for other in imported_rooms(path) - {own}:
        assert RANK[other] < RANK[own], f"{path.relative_to(SOURCE)} imports {other}, which lies above {own}"
        assert other not in FORBIDDEN.get(own, set()), f"{own} must not know {other}"


def test_the_walk_sees_a_wrong_import(tmp_path: Path) -> None:
    file = tmp_path / "wrong.py"
    file.write_text("from engramscope.cli import main\nimport engramscope.study\n")
    assert imported_rooms(file) == {"cli", "study"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_are_short_enough_to_be_read_whole(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_and_version_import_no_torch_and_answer_at_once(arguments: list[str]) -> None:
    program = (
        "import sys; from engramscope import cli\n"
        f"code = cli._run_app({arguments!r})\n"
        "heavy = {'torch', 'transformers', 'pandas', 'numpy', 'scipy', 'plotly'} & set(sys.modules)\n"
        "assert not heavy, heavy\nsys.exit(code)"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # the promise is half a second; a busy test machine gets some grace, the list of modules above is the sharp test
    assert time.perf_counter() - started < 3


def test_importing_the_package_imports_no_torch() -> None:
    program = "import sys, engramscope; assert 'torch' not in sys.modules; assert 'patch' in dir(engramscope)"
    subprocess.run([sys.executable, "-c", program], check=True)

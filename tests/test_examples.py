"""What the examples and the README show is accepted and runs."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

from engramscope import check_study, read_pairs
from engramscope.study_file import read_study

ROOT = Path(__file__).parent.parent
STUDIES = sorted([*ROOT.glob("examples/*/*.toml"), *ROOT.glob("src/engramscope/demo/*.toml")])


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_that_comes_along_has_a_sound_design(path: Path) -> None:
    assert read_study(path).sweep
    assert not [finding for finding in check_study(path) if finding.severity == "error"]


def test_the_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "patch.py"))
    assert "strongest" in capsys.readouterr().out


def test_the_pair_of_the_readme_is_the_first_of_the_example() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```json\n(.*?)\n```", readme, re.DOTALL)
    assert block
    first = (ROOT / "examples" / "landmarks" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()[0]
    assert json.loads(block.group(1)) == json.loads(first)
    assert len(read_pairs(ROOT / "examples" / "landmarks" / "pairs.jsonl")) == 12


def test_every_file_that_the_readme_names_is_there() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", readme):
        assert (ROOT / target).exists(), target

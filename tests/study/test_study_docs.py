"""docs/study.md says what the study file's code says: every key with its default, and examples that are accepted."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from engramscope import study_file
from engramscope.corruptions import corruption_names, make_corruption
from engramscope.pairs.roles import known_roles
from engramscope.study_file import parse_study
from engramscope.tasks import TASKS, task_names

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "study.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```toml\n(.*?)```", TEXT + (DOCS / "tracing.md").read_text(encoding="utf-8"), flags=re.DOTALL)
SECTIONS = {
    "model": study_file.ModelSection, "pairs": study_file.PairsSection, "corruption": study_file.CorruptionSection,
    "sweep": study_file.SweepSection, "metrics": study_file.MetricsSection, "stats": study_file.StatsSection,
    "run": study_file.RunSection,
}  # fmt: skip


def _declared() -> dict[str, Any]:
    """Every key of the code with its default."""
    top = {key: info for key, info in study_file.StudyFile.model_fields.items() if key not in SECTIONS}
    keys = {str(info.alias or key): info.default for key, info in top.items()}
    for section, model in SECTIONS.items():
        keys |= {f"{section}.{key}": info.default for key, info in _fields(model).items()}
    return keys


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    return dict(model.model_fields)


def _documented() -> dict[str, tuple[bool, str]]:
    rows = re.findall(r"^\| `([a-z0-9_.]+)`( \*)? \|([^|]*)\|", TEXT, flags=re.MULTILINE)
    return {
        key: (bool(star), default.strip().strip("`")) for key, star, default in rows if key not in corruption_names()
    }


def test_every_key_is_documented_with_its_default() -> None:
    declared, documented = _declared(), _documented()
    assert set(documented) == set(declared)
    for key, default in declared.items():
        required, shown = documented[key]
        assert required == (default is PydanticUndefined), key
        if default is not PydanticUndefined and default is not None:
            assert tomllib.loads(f"x = {shown}")["x"] == default, key


def test_every_option_of_every_task_is_documented() -> None:
    rows = re.findall(r"^\| (`task [^|]*)\|([^|]*)\|", TEXT, flags=re.MULTILINE)
    documented = {name: options for names, options in rows for name in re.findall(r"`task ([a-z_]+)`", names)}
    assert set(documented) == set(task_names())
    for name, options in documented.items():
        shown = dict(re.findall(r"`([a-z_]+)`(?: \(([^)]*)\))?", options))
        fields = TASKS.get(name).Options.model_fields
        assert set(shown) == set(fields)
        for key, info in fields.items():
            assert shown[key] == {None: "", (): "[]"}.get(info.default, f'"{info.default}"')


def test_every_option_of_every_corruption_is_documented() -> None:
    rows = dict(re.findall(r"^\| `([a-z_]+)` \|([^|]*)\|", TEXT, flags=re.MULTILINE))
    for name in corruption_names():
        options = make_corruption(name, {}).options.model_dump()
        found = dict(re.findall(r"`([a-z_]+)` \(([^)]*)\)", rows[name]))
        assert {key: tomllib.loads(f"x = {value}")["x"] for key, value in found.items()} == options, name


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_every_example_is_accepted(number: int) -> None:
    study = parse_study(tomllib.loads(EXAMPLES[number]))
    assert make_corruption(study.corruption.method, study.corruption.options)


def test_there_is_an_example_for_each_question() -> None:
    assert len(EXAMPLES) == 7
    assert len(TEXT.splitlines()) <= 200
    for role in known_roles():
        assert role in TEXT

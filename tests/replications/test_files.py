"""Every replication file: found in the package, complete, with studies and tasks that are accepted as they stand."""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from engramscope.corruptions import make_corruption
from engramscope.errors import StudyError, UnknownNameError
from engramscope.metrics import metric_names
from engramscope.options import parse_options
from engramscope.replications import parse_replication, read_replication, replication_names
from engramscope.replications._file import merged, without_experiment
from engramscope.study_file import parse_study, study_toml
from engramscope.tasks import TASKS

NAMES = replication_names()
ROOT = Path(__file__).parents[2]
PAPERS = {"zn_": "2309.16042", "meng_": "2202.05262", "clap_": "2504.02976"}


def raw(name: str) -> dict[str, Any]:
    return tomllib.loads(files("engramscope.replications").joinpath(f"{name}.toml").read_text(encoding="utf-8"))


def test_the_files_are_part_of_the_package() -> None:
    assert len(NAMES) >= 26
    folder = ROOT / "src" / "engramscope" / "replications"
    there = sorted(path.stem for path in folder.glob("*.toml") if not path.name.startswith("_"))
    assert sorted(NAMES) == there
    # the wheel takes every file of the package that git does not ignore
    assert 'packages = ["src/engramscope"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    every = [*map(str, folder.glob("*.toml")), str(folder / "templates" / "replication.html.j2")]
    ignored = subprocess.run(["git", "check-ignore", *every], cwd=ROOT, capture_output=True, text=True, check=False)
    assert not ignored.stdout


@pytest.mark.parametrize("name", NAMES)
def test_every_study_of_a_replication_is_accepted(name: str) -> None:
    file = read_replication(name).file
    assert file.arm
    for arm in file.arm:
        declared = file.study_of(arm, file.model)
        study = parse_study(declared, arm)
        # what is written beside the results reads the same
        assert parse_study(tomllib.loads(study_toml(declared)), arm) == study
        assert make_corruption(study.corruption.method, study.corruption.options)
        assert set(study.metrics.names) <= set(metric_names())
        assert study.pairs.task is not None
        task = TASKS.get(study.pairs.task)
        parse_options("task", study.pairs.task, task.Options, study.pairs.options)
        assert all(sweep.direction == "denoise" for sweep in study.sweep)


@pytest.mark.parametrize("name", NAMES)
def test_every_value_says_where_it_stands_and_the_whole_has_a_rule(name: str) -> None:
    replication = read_replication(name)
    file = replication.file
    names = [value.name for value in file.value]
    assert len(names) == len(set(names))
    assert file.verdict.rule.endswith(".")
    assert next(paper for start, paper in PAPERS.items() if name.startswith(start)) in file.source
    assert all(line.endswith(".") for line in (*file.notes, *file.deviations))
    for value, measure in zip(file.value, replication.measures, strict=True):
        bare = not measure.published()
        assert not (bare and value.counts) or file.verdict.rule.startswith("None"), value.name
    if file.verdict.exact is not None:
        kinds = ("detected", "class_counts")
        sets = [value for value in file.value if value.measure in kinds and value.counts]
        assert len(sets) >= 6 >= file.verdict.exact


def test_every_table_and_figure_is_there_once_or_has_a_reason_not_to_be() -> None:
    covered: dict[str, list[str]] = {}
    for name in NAMES:
        if name.startswith("zn_"):
            for item in read_replication(name).file.items:
                covered.setdefault(re.sub(r"(Figure \d+)[a-d]$", r"\1", item), []).append(name)
    exempt = {item.item: item.reason for item in without_experiment()}
    assert set(exempt) == {"Figure 1", "Figure 25", "Figure 31"}
    wanted = {f"Table {n}" for n in range(1, 6)} | {f"Figure {n}" for n in range(2, 31)} - set(exempt)
    # 6 to 8 and 11 and 28 to 30 stand with the tables that they show
    assert {item for item in covered if not item.startswith("Section")} == wanted
    assert all(len(set(names)) == 1 for names in covered.values())
    meng = {item for name in NAMES if name.startswith("meng_") for item in read_replication(name).file.items}
    assert meng == {"Figure 1", "Figure 2", "Figure 3", "Figure 7"}
    assert set(read_replication("clap_tables").file.items) == {"Table 3", "Table 4", "Table 5"}


def test_the_documentation_names_every_replication_and_measure_of_a_verdict() -> None:
    text = (ROOT / "docs" / "replication.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert f"`{name}`" in text, name


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'zn_table5'"):
        read_replication("zn_tabel5")
    with pytest.raises(UnknownNameError):
        read_replication("_no_experiment")


def faults(**over: Any) -> tuple[str, ...]:
    with pytest.raises(StudyError) as caught:
        parse_replication(merged(raw("zn_table5"), over), "made")
    return caught.value.faults


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"modle": "gpt2"}, "did you mean 'model'"),
        ({"quick": {"limt": 3}}, "did you mean 'limit'"),
        ({"verdict": {"exakt": 5}}, "did you mean 'exact'"),
        ({"layers": 0}, "layers"),
        ({"view": {"v": {"arm": "stt", "kind": "attention"}}}, "did you mean 'str'"),
        ({"view": {"v": {"arm": "str", "kind": "attention", "restore": {"sight": "v"}}}}, "did you mean 'site'"),
        ({"study": {"metrics": {"nams": ["prob"]}}}, "did you mean 'names'"),
        ({"arm": {"str": {"sweep": [{"name": "heads", "site": "z", "haeds": "each"}]}}}, "did you mean 'heads'"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest_known_one(over: dict[str, Any], said: str) -> None:
    assert any(said in fault for fault in faults(**over)), faults(**over)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"measure": "detectd", "arm": "str", "metric": "kl"}, "did you mean 'detected'"),
        ({"measure": "detected", "arm": "st", "metric": "kl"}, "did you mean 'str'"),
        ({"measure": "detected", "arm": "str", "metric": "kll"}, "did you mean 'kl'"),
        ({"measure": "detected", "arm": "str", "sweep": "head", "metric": "kl"}, "did you mean 'heads'"),
        ({"measure": "detected", "arm": "str", "metric": "kl", "publishd": {}}, "did you mean 'published'"),
        ({"measure": "attention", "view": "look", "run": "clean", "target": "io"}, "no view 'look'"),
        ({"measure": "order", "larger": {"measure": "baseline", "arm": "x", "metric": "kl", "run": "clean"},
          "smaller": {"measure": "baseline", "arm": "str", "metric": "kl", "run": "clean"}}, "no arm 'x'"),
    ],
)  # fmt: skip
def test_what_a_value_points_at_has_to_be_there(value: dict[str, Any], said: str) -> None:
    found = faults(value=[{"name": "v", "where": "here", **value}])
    assert any(said in fault for fault in found), found


def test_every_fault_is_named_at_once() -> None:
    bad = [{"name": f"v{n}", "where": "here", "measure": "baseline", "arm": "x", "metric": "kl", "run": "clean"}
           for n in range(3)]  # fmt: skip
    assert len(faults(value=bad)) == 3


def test_an_arm_overrides_what_all_arms_share_table_by_table() -> None:
    base = {"pairs": {"task": "ioi", "limit": 5}, "sweep": [{"name": "a"}]}
    assert merged(base, {"pairs": {"limit": 3}, "sweep": [{"name": "b"}]}) == {
        "pairs": {"task": "ioi", "limit": 3}, "sweep": [{"name": "b"}],
    }  # fmt: skip
    assert base["pairs"]["limit"] == 5  # type: ignore[index]

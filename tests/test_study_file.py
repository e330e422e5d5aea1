"""The study file: every fault is named at once, in a sentence, with the nearest known name."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from engramscope.errors import StudyError
from engramscope.study_file import parse_study, read_study

#: the design's own example, which other tools write
CONTRACT = """
schema = 1
name = "epilepsy"
seed = 0
[model]
name = "mini"
dtype = "float32"
device = "auto"
[pairs]
task = "clap_epilepsy"
limit = 200
[corruption]
method = "str"
[[sweep]]
name = "heads"
site = "z"
layers = "each"
heads = "each"
positions = "all"
window = 1
direction = "denoise"
[metrics]
names = ["logit_diff", "prob", "kl"]
[stats]
confidence = 0.95
resamples = 10000
cluster = "group"
[run]
executor = "traversal"
check = 16
memory_gb = 4.0
"""


def raw(**changes: Any) -> dict[str, Any]:
    study = tomllib.loads(CONTRACT)
    for place, value in changes.items():
        section, key = place.split("__")
        (study[section][0] if section == "sweep" else study[section])[key] = value
    return study


def faults(study: dict[str, Any]) -> str:
    with pytest.raises(StudyError) as caught:
        parse_study(study, "study.toml")
    return "\n".join(caught.value.faults)


def test_the_contract_is_accepted_word_for_word() -> None:
    study = parse_study(tomllib.loads(CONTRACT))
    assert study.sweep[0].heads == "each"
    assert study.metrics.names == ["logit_diff", "prob", "kl"]


def test_an_unknown_key_names_its_place_and_the_nearest_known_one() -> None:
    message = faults(raw(model__dtpye="float32"))
    assert "model.dtpye" in message
    assert "did you mean 'dtype'" in message


def test_an_unknown_section_is_a_fault() -> None:
    assert "did you mean 'metrics'" in faults({**raw(), "metrix": {}})


def test_every_fault_is_named_at_once() -> None:
    message = faults(raw(model__dtype="float8", stats__confidence=2.0, sweep__window=0, sweep__direction="sideways"))
    for place in ("model.dtype", "stats.confidence", "sweep.0.window", "sweep.0.direction"):
        assert place in message
    assert len(message.splitlines()) == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sweep__layers": "some"}, "sweep.0.layers"),
        ({"sweep__layers": []}, "sweep.0.layers"),
        ({"sweep__layers": [-1]}, "sweep.0.layers"),
        ({"sweep__heads": [1.5]}, "sweep.0.heads"),
        ({"sweep__positions": 3}, "or a list"),
        ({"sweep__positions": [-1]}, "sweep.0.positions.0"),
        ({"pairs__file": "pairs.jsonl"}, "exactly one"),
        ({"metrics__names": []}, "metrics.names"),
        ({"metrics__names": ["prob", "prob"]}, "named twice"),
        ({"run__check": -1}, "run.check"),
        ({"stats__resamples": 3}, "stats.resamples"),
    ],
)
def test_values_out_of_range_are_one_sentence_each(change: dict[str, Any], said: str) -> None:
    message = faults(raw(**change))
    assert said in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("positions", [[0, 3], ["last", "s2"], ["3"], "each"])
def test_positions_are_indices_or_names(positions: Any) -> None:
    assert parse_study(raw(sweep__positions=positions)).sweep[0].positions == positions


def test_positions_are_not_mixed() -> None:
    assert "sweep.0.positions.1" in faults(raw(sweep__positions=[0, "last"]))


def test_two_sweeps_of_one_name_are_a_fault() -> None:
    study = raw()
    study["sweep"] = study["sweep"] * 2
    assert "two sweeps are called heads" in faults(study)


def test_a_missing_section_is_named() -> None:
    study = raw()
    del study["model"]
    assert "'model' is missing" in faults(study)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"schema = ", "not valid TOML"), (b"\xff\xfe", "cannot be read"), (b"", "missing")],
)
def test_a_broken_file_is_one_clear_message(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "study.toml"
    path.write_bytes(content)
    with pytest.raises(StudyError, match=said):
        read_study(path)


def test_a_missing_file_is_one_clear_message(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no study file"):
        read_study(tmp_path / "nothing.toml")


def test_options_of_the_corruption_stand_beside_its_name() -> None:
    study = raw()
    study["corruption"] = {"method": "gaussian", "sigma": 3.0, "draws": 10, "span": "subject"}
    assert parse_study(study).corruption.options == {"sigma": 3.0, "draws": 10, "span": "subject"}

"""The best-practice comparison: lists, agreement, blind spots and windows of known tables; the whole on a model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from engramscope import patch
from engramscope.cli import _run_app
from engramscope.errors import InputError
from engramscope.pairs import Pair, PairSet
from engramscope.practices import run_practices
from engramscope.practices.arms import Request, arms_of
from engramscope.practices.detections import agreement, blind_spots, concentration, detections
from engramscope.practices.page import sentences
from engramscope.practices.run import targets_of
from engramscope.practices.windows import window_peaks
from engramscope.study_file import parse_study, study_toml
from engramscope.tasks import TASKS
from tests.planted import planted_model, value_pairs


def _summary(recoveries: dict[str, list[float]], **columns: Any) -> pd.DataFrame:
    """Heads of one layer per metric; a head is 2-SD detected above 0.5 in size, corrected above 0.2."""
    rows = [
        {
            "metric": metric, "layer": 0, "head": head, "recovery": value, "cut": False,
            "effect": -2 * value if metric == "kl" else 2 * value,
            "two_sd": abs(value) > 0.5, "detected": metric != "kl" and abs(value) > 0.2,
            "p_adjusted": None if metric == "kl" else 0.5, "q": None if metric == "kl" else 0.01 / (abs(value) + 1e-9),
        }
        for metric, values in recoveries.items()
        for head, value in enumerate(values)
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(**columns)


def test_lists_keep_their_signs_and_are_ordered_by_size() -> None:
    table = _summary({"logit_diff": [0.6, -0.9, 0.8, 0.3, 0.01], "kl": [0.7, 0.1, 0.0, 0.0, -0.6]})
    by_rule = {(one.metric, one.rule): one for one in detections(table, "s2", "str")}
    assert by_rule["logit_diff", "two_sd"].positive == ("0.2", "0.0")
    assert by_rule["logit_diff", "two_sd"].negative == ("0.1",)
    assert by_rule["logit_diff", "max_t"].positive == ("0.2", "0.0", "0.3")
    assert by_rule["logit_diff", "bh"].positive == ("0.2", "0.0", "0.3")
    assert by_rule["kl", "two_sd"].negative == ("0.4",)
    assert not by_rule["kl", "max_t"].tested
    cut = detections(table.assign(cut=table["head"] == 2), "s2", "str")
    assert cut[0].positive == ("0.0",)


def test_a_head_without_a_recovery_is_listed_by_the_sign_of_its_effect() -> None:
    table = _summary({"logit_diff": [0.9, -0.9, 0.0]}).assign(recovery=float("nan"))
    one = detections(table, "s2", "str")[0]
    assert (one.positive, one.negative) == (("0.0",), ("0.1",))


def test_the_same_heads_with_other_signs_are_no_agreement() -> None:
    one = detections(_summary({"logit_diff": [0.9, -0.9, 0, 0, 0, 0]}), "s2", "str")
    same = detections(_summary({"logit_diff": [0.9, -0.8, 0, 0, 0, 0]}), "s2", "gaussian")
    turned = detections(_summary({"logit_diff": [-0.9, 0.8, 0, 0, 0, 0]}), "s2", "gaussian")
    (alike,) = agreement([*one, *same], "two_sd").to_dict("records")
    (opposite,) = agreement([*one, *turned], "two_sd").to_dict("records")
    assert (alike["jaccard"], opposite["jaccard"]) == (1.0, 0.0)
    # two of six cells, drawn at random: both in common 1 of 15, one 8 of 15
    assert alike["chance"] == pytest.approx(1 / 15 + 8 / 15 / 3)
    assert alike["p"] == pytest.approx(1 / 15)


def test_where_the_probability_hides_a_negative_head() -> None:
    table = _summary({"logit_diff": [0.9, -0.7, -0.3, -0.8], "prob": [0.9, -0.01, -0.01, -0.9]})
    found = blind_spots(table)
    assert [(one["head"], one["rule"]) for one in found] == [("0.1", "two_sd"), ("0.2", "max_t")]
    assert found[0]["logit_diff"] == pytest.approx(-1.4)
    assert found[0]["prob"] == pytest.approx(-0.02)
    assert blind_spots(table[table.metric == "prob"]) == []


def test_the_planted_negative_head_is_a_blind_spot() -> None:
    """Zhang & Nanda 2023, §4.2, on a circuit that is known: the corrupted run gives the answer no probability."""
    result = patch(
        planted_model(), value_pairs(16), "z", heads="each", metrics=("logit_diff", "prob"), resamples=2000, seed=1
    )
    found = blind_spots(result.summary)
    assert [one["head"] for one in found] == ["1.1"]
    assert found[0]["logit_diff"] < -0.5
    corrupted = result.effects.loc[result.effects.metric == "prob", "corrupted"].mean()
    assert -corrupted - 1e-9 <= found[0]["prob"] <= 0.0


def test_concentration_counts_the_heads_that_share_the_effect() -> None:
    table = _summary({"logit_diff": [1.0, 0, 0, 0], "prob": [0.5, -0.5, 0.5, 0.5]})
    assert concentration(table) == pytest.approx({"logit_diff": 1.0, "prob": 4.0})


def _windows(joint: dict[int, list[float]], layers: int) -> pd.DataFrame:
    rows = [
        {"metric": "prob", "position_role": "last", "window": width, "layer": layer, "effect": value, "cut": False}
        for width, values in joint.items()
        for layer, value in zip(range(layers), values, strict=True)
    ]
    return pd.DataFrame(rows)


def test_window_peaks_against_a_plain_loop() -> None:
    rng = np.random.default_rng(3)
    layers = 12
    joint = {width: list(rng.uniform(0.1, 1, layers)) for width in (1, 3, 10)}
    table = window_peaks(_windows(joint, layers)).set_index("window")
    for width in joint:
        sums = [
            sum(joint[1][at] for at in range(max(0, layer - width // 2), min(layers, layer + (width + 1) // 2)))
            for layer in range(layers)
        ]
        assert table.loc[width, "peak"] == pytest.approx(max(joint[width]))
        assert table.loc[width, "ratio"] == pytest.approx(max(joint[width]) / max(sums))
        middle = range(2, 9)  # 10/48 and 30/48 of 12 layers
        inside = max(joint[width][layer] for layer in middle) / max(sums[layer] for layer in middle)
        assert table.loc[width, "middle_ratio"] == pytest.approx(inside)
    assert table.loc[1, "ratio"] == pytest.approx(1.0)


def test_a_window_without_all_of_its_layers_has_no_ratio() -> None:
    table = _windows({1: [0.1, 0.2, 0.3], 3: [0.5, 0.6, 0.7]}, 3)
    table.loc[(table.window == 1) & (table.layer == 1), "cut"] = True
    row = window_peaks(table).set_index("window").loc[3]
    assert math.isnan(row["ratio"])


def test_spans_that_share_text_are_not_both_looked_at() -> None:
    pair = Pair(
        id="p", clean="Ann met Bob", correct=(" x",), spans={"who": (0, 7), "first": (0, 3), "last_one": (8, 11)}
    )
    apart = Pair(id="q", clean="Ann met Bob", correct=(" x",), spans={"first": (0, 3), "last_one": (8, 11)})
    assert targets_of(PairSet((pair, apart), "x")) == ["who", "last_one"]
    assert targets_of(PairSet((apart,), "x")) == ["first", "last_one"]


def test_every_arm_is_a_study_and_differs_in_what_it_says() -> None:
    request = Request("ioi", {"name": "mini"}, 10, 0, 4, 6, 200, {})
    arms = arms_of(request)
    assert len(arms) == 8
    for arm in arms:
        study = parse_study(json.loads(json.dumps(arm.study)))
        import tomllib

        assert parse_study(tomllib.loads(study_toml(arm.study))) == study
    spans = {arm.variant: arm.study["corruption"].get("span") for arm in arms if arm.corruption == "gaussian"}
    assert spans == {"s2": "s2", "s1_io": ["s1", "io"], "abc": ["s1", "s2", "io"]}
    assert [sweep["window"] for sweep in arms[-1].study["sweep"]] == [1, 3, 5]  # 10 is wider than six layers
    assert all(TASKS.get(name).all_variants() for name in ("greater_than", "docstring", "factual"))


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("practices") / "out"
    return run_practices("greater_than", "mini", out, limit=12, draws=2, resamples=200)


def test_the_comparison_of_a_task_on_a_model(compared: Any) -> None:
    found = compared.found
    assert {arm["folder"] for arm in found["arms"]} == {
        "heads-yy-str", "heads-yy-gaussian", "windows-yy-str", "windows-yy-gaussian",
    }  # fmt: skip
    assert len(found["detections"]) == 2 * 3 * 3
    assert {row["window"] for rows in found["windows"].values() for row in rows} == {1, 3, 5}
    assert sentences(found)
    page = compared.page.read_text(encoding="utf-8")
    assert page.count("data:image/svg+xml") == 2
    assert "Benjamini" in page
    for row in found["attention"]["rows"]:
        assert 0 <= row["mean"] <= 1 + 1e-6
    assert {row["run"] for row in found["attention"]["rows"]} >= {"clean", "corrupted"} or not found["attention"][
        "heads"
    ]


def test_a_finished_comparison_is_taken_up_and_an_occupied_folder_refused(compared: Any) -> None:
    before = (compared.folder / "heads-yy-str" / "effects.parquet").stat().st_mtime_ns
    again = run_practices("greater_than", "mini", compared.folder, limit=12, draws=2, resamples=200, resume=True)
    assert again.found == compared.found
    assert (compared.folder / "heads-yy-str" / "effects.parquet").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="not empty"):
        run_practices("greater_than", "mini", compared.folder, limit=12)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["practices", "iio"], "did you mean 'ioi'"),
        (["practices", "clap_tables"], "with a corrupted prompt"),
        (["practices", "greater_than", "--limit", "12", "--heads", "9.9"], "no head 9.9"),
    ],
)
def test_bad_input_is_one_message(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = _run_app([*arguments, "--out", str(tmp_path / "out"), "--quiet"])
    assert code == 2
    assert words in capsys.readouterr().err

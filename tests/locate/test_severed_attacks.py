"""Ways in which severed sweeps could have said something wrong without a sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engramscope import patch, run_study
from engramscope.errors import InputError
from engramscope.report.load import load
from engramscope.report.tracing import tracing_panels
from engramscope.report.ways import way_words
from engramscope.study_file import parse_study
from tests.locate.test_severed import _model, _pairs
from tests.tiny_study import pair_rows, save_model, write_study

NOISE = {"corruption": "gaussian", "options": {"draws": 2, "sigma": 2.0, "span": "subject"}}


def test_an_ablation_cannot_be_severed() -> None:
    with pytest.raises(InputError, match="makes none"):
        patch(
            _model("gpt2"), _pairs(), "resid_post", positions="last", direction="noise", severed="mlp_out",
            corruption="zero", resamples=100,
        )  # fmt: skip


def test_the_noise_floor_of_another_draw_is_noise() -> None:
    from engramscope.corruptions import make_corruption
    from engramscope.locate.cells import cells_of
    from engramscope.locate.experiment import noise_floor, set_up
    from engramscope.study_file import SweepSection

    experiment = set_up(_model("gpt2"), _pairs(), make_corruption("gaussian", NOISE["options"]), "gaussian", ["prob"])
    sweep = SweepSection(name="s", site="resid_post", positions=["subject_last"], severed="mlp_out", as_published=True)
    cells = list(cells_of(sweep, experiment.model.anatomy, [one.tokens for one in experiment.prepared]))
    assert noise_floor(experiment, cells, 6)["prob"] < 1e-9


def test_a_severed_module_behind_what_is_restored_leaves_a_way_open() -> None:
    model, pairs = _model("gpt2"), _pairs(4)
    mid = patch(model, pairs, "resid_mid", positions="last", severed="mlp_out", resamples=100)
    assert not mid.effects["cut"].any()
    post = patch(model, pairs, "resid_post", positions="last", severed="mlp_out", resamples=100).effects
    assert set(post.loc[post["cut"], "layer"]) == {2}
    assert post.loc[post["cut"], "recovery"].to_numpy() == pytest.approx(1.0, abs=1e-9)


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("severed")
    place = {"site": "resid_post", "positions": ["subject_last"]}
    sweeps = (
        {"name": "plain", **place},
        {"name": "wide", **place, "window": 2, "severed": "mlp_out"},
    )
    path = write_study(folder, save_model(folder / "model"), sweeps, pair_rows(8), stats={"resamples": 100})
    run_study(path, folder / "out")
    return load(folder / "out")


def test_severed_windows_stand_beside_their_own_single_layers(windows: Any) -> None:
    summary = windows.summary
    assert set(summary["sweep"]) == {"plain", "wide", "wide (single layers)"}
    one = {name: rows.set_index("layer")["estimate"] for name, rows in summary.groupby("sweep")}
    sums = summary[summary["sweep"] == "wide"].set_index("layer")["singles_sum"]
    # the window of layer 1 is layers 0 and 1
    assert sums[1] == pytest.approx(one["wide (single layers)"][0] + one["wide (single layers)"][1], abs=1e-12)
    assert abs(one["plain"][0] - one["wide (single layers)"][0]) > 1e-6


def test_the_single_layers_of_severed_windows_are_not_called_unsevered(windows: Any) -> None:
    assert way_words(windows, "wide (single layers)") == ", MLPs severed"
    (panel,) = [one for one in tracing_panels(windows) if one.key.startswith("severed")]
    plain = windows.summary[windows.summary["sweep"] == "plain"].sort_values("layer")["effect"]
    assert panel.rows[0] == "nothing severed"
    assert list(panel.metrics["logit_diff"].shown[0]) == pytest.approx(list(plain))


def test_an_empty_list_of_receivers_is_no_ordinary_patch(tmp_path: Path) -> None:
    del tmp_path
    sweep = {"name": "p", "site": "z", "receivers": []}
    with pytest.raises(InputError, match="nobody receives"):
        parse_study({"schema": 1, "name": "s", "model": {"name": "mini"}, "pairs": {"task": "ioi"}, "sweep": [sweep]})

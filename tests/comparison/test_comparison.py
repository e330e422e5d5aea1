"""Two studies side by side: agreement of known tables, and the page of two models and of two kinds of questions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from engramscope import run_study
from engramscope.cli import _run_app
from engramscope.comparison import compare_studies
from engramscope.comparison.cells import compare_cells
from engramscope.errors import InputError
from engramscope.results.schema import SUMMARY_COLUMNS


def _table(estimates: list[float], detected: list[int], cut: tuple[int, ...] = (), **changes: Any) -> pd.DataFrame:
    rows = [
        {
            **dict.fromkeys(SUMMARY_COLUMNS), "sweep": "mlp", "direction": "denoise", "site": "mlp_out", "layer": layer,
            "position_role": "all", "window": 1, "metric": "logit_diff", "estimate": value,
            "estimate_kind": "recovery", "detected": layer in detected, "cut": layer in cut, **changes,
        }
        for layer, value in enumerate(estimates)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_agreement_of_two_known_tables() -> None:
    one = _table([0.1, 0.9, 0.5, 0.3], [1, 2])
    other = _table([0.2, 0.8, 0.9, 0.1], [2], corruption="gaussian")
    (row,) = compare_cells(one, other)
    ranks = (pd.Series([0.1, 0.9, 0.5, 0.3]).rank(), pd.Series([0.2, 0.8, 0.9, 0.1]).rank())
    assert row["correlation"] == pytest.approx(float(np.corrcoef(ranks)[0, 1]))
    assert (row["common"], row["either"]) == (4, 4)
    assert row["jaccard"] == pytest.approx(0.5)
    assert row["chance"] == pytest.approx(0.5 * 0.5)  # one of four drawn: in the other's two, half the time
    assert row["widest"]["layer"] == 2


def test_cells_that_only_one_has_and_cuts_take_no_part() -> None:
    one, other = _table([0.1, 0.9, 0.5, 0.3, 1.0], [4], cut=(4,)), _table([0.1, 0.9, 0.5], [])
    (row,) = compare_cells(one, other)
    assert (row["common"], row["either"]) == (3, 5)
    assert row["correlation"] == pytest.approx(1.0)
    rows = compare_cells(one, _table([0.1], [], sweep="other"))
    assert {(item["sweep"], item["common"]) for item in rows} == {("mlp", 0), ("other", 0)}


def test_a_recovery_and_an_effect_are_compared_as_effects() -> None:
    one = _table([0.1, 0.9, 0.5], [], effect=0.0)
    one["effect"] = [1.0, 2.0, 3.0]
    other = _table([-5.0, 4.0, 1.0], [], estimate_kind="effect")
    other["effect"] = [1.5, 2.0, 9.0]
    (row,) = compare_cells(one, other)
    assert row["correlation"] == pytest.approx(1.0)
    assert row["widest"]["layer"] == 2
    assert row["widest"]["shown"] == "effect"


def _study(folder: Path, model: str, **corruption: Any) -> Path:
    path = folder / f"{model}.toml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'schema = 1\nname = "epilepsy on {model}"\nmodel = {{ name = "{model}" }}\n'
        'pairs = { task = "clap_epilepsy", limit = 24 }\n'
        'stats = { contrast = "kind", resamples = 200 }\nrun = { check = 2 }\n'
        '[[sweep]]\nname = "heads"\nsite = "z"\nheads = "each"\n'
        '[[sweep]]\nname = "attention"\nsite = "attn_out"\n',
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("two")
    for model in ("mini", "mini-llama"):
        run_study(_study(folder, model), folder / model)
    return folder / "mini", folder / "mini-llama"


def test_definitional_and_associative_questions_on_two_models(folders: tuple[Path, Path], tmp_path: Path) -> None:
    found = compare_studies(*folders, tmp_path / "both.html")
    assert any(item.startswith("model.name") for item in found.differs)
    by_sweep = {row["sweep"]: row for row in found.rows}
    assert by_sweep["attention"]["common"] == 6
    assert -1 <= by_sweep["heads"]["correlation"] <= 1
    text = found.page.read_text(encoding="utf-8")
    assert "epilepsy on mini and epilepsy on mini-llama" in text
    assert text.count("data:image/svg+xml") >= 4
    assert "associative" in text  # the contrast of the two kinds stands in both answers
    assert not re.search(r"<script|https?://", re.sub(r"data:image[^\"]+", "", text))


def test_a_study_agrees_with_itself(folders: tuple[Path, Path], tmp_path: Path) -> None:
    found = compare_studies(folders[0], folders[0], tmp_path / "self.html")
    assert found.differs == ()
    for row in found.rows:
        assert row["correlation"] == pytest.approx(1.0)
        assert row["jaccard"] in (None, 1.0)


def test_a_folder_that_is_no_study_is_refused(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = _run_app(["compare", str(folders[0]), str(tmp_path), "--out", str(tmp_path / "x.html")])
    assert code == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()
    with pytest.raises(InputError):
        compare_studies(tmp_path / "none", folders[0], tmp_path / "x.html")

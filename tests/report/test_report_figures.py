from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import synthetic

from engramscope.report.figures import draw, write_figures
from engramscope.report.load import load
from engramscope.report.panels import Panel, Values, _blocks, panels


def test_every_panel_and_metric_is_there_as_svg_and_png(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    study = load(synthetic.build(tmp_path / "out"))
    found = write_figures(study, panels(study))
    names = {path.name for path in found}
    stems = ("layers-denoise", "sites-denoise", "heads-denoise", "heads-noise", "residual-denoise", "places-denoise")
    assert names == {
        f"{stem}-{metric}.{ending}" for stem in stems for metric in ("logit-diff", "prob") for ending in ("svg", "png")
    }
    for path in found:
        data = path.read_bytes()
        if path.suffix == ".png":
            assert data.startswith(b"\x89PNG")
        else:
            assert ET.fromstring(data).tag.endswith("svg")
    assert dict(mpl.rcParams) == before
    again = (tmp_path / "out/figures/heads-denoise-prob.svg").read_bytes()
    write_figures(study, [panel for panel in panels(study) if panel.key == "heads-denoise"])
    assert (tmp_path / "out/figures/heads-denoise-prob.svg").read_bytes() == again


def test_hostile_labels_are_drawn_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "HOSTILE", ("$\\frac{1}", "$$", "\U0001f9e0\u4e2d", "<b>", "%s%n", "_^{"))
    study = load(synthetic.build(tmp_path / "out", hostile=True))
    residual = [panel for panel in panels(study) if panel.key == "residual-denoise"]
    assert any("$" in label for label in residual[0].rows)
    assert len(write_figures(study, residual)) == 4


def test_the_picture_holds_the_numbers_of_the_table(tmp_path: Path) -> None:
    study = load(synthetic.build(tmp_path / "out"))
    panel = next(panel for panel in panels(study) if panel.key == "residual-denoise")
    figure = draw(panel, panel.metrics["prob"], "prob")
    image = figure.axes[0].images[0]
    drawn = np.ma.filled(image.get_array(), np.nan)
    rows = study.summary[(study.summary["sweep"] == "residual") & (study.summary["metric"] == "prob")]
    expected = np.full((7, 6), np.nan)
    for row in rows.to_dict("records"):
        if not row["cut"]:
            expected[row["position"], row["layer"]] = 100 * row["estimate"]
    np.testing.assert_allclose(drawn, expected, rtol=1e-12)
    low, high = image.get_clim()
    assert low == -high


def test_two_sweeps_whose_names_look_alike_keep_two_files(tmp_path: Path) -> None:
    rows = [synthetic.summary_row(sweep=sweep, site="z", layer=layer, head=head, estimate=0.1)
            for sweep in ("my heads", "My-Heads", "頭") for layer in range(2) for head in range(2)]  # fmt: skip
    keys = [panel.key for panel in panels(load(synthetic.build(tmp_path / "out", rows=rows)))]
    assert keys == ["my-heads-denoise", "my-heads-denoise-2", "sweep-denoise"]


def test_heads_and_positions_at_once_show_the_largest_that_is_no_cut(tmp_path: Path) -> None:
    rows = [
        synthetic.summary_row(sweep="all", site="z", layer=layer, head=head, position_role=role, estimate=x, cut=cut)
        for layer in range(2) for head in range(2)
        for role, x, cut in (("first", 0.1 * layer, False), ("s2", -0.3 - head, False), ("last", 5.0, True))
    ]  # fmt: skip
    (panel,) = panels(load(synthetic.build(tmp_path / "out", rows=rows)))
    np.testing.assert_allclose(panel.metrics["logit_diff"].shown, [[-0.3, -0.3], [-1.3, -1.3]])
    assert "largest" in panel.note


def test_blocks_show_the_largest_value_that_is_no_cut() -> None:
    rng = np.random.default_rng(5)
    shape = (7, 11)
    shown = rng.normal(size=shape)
    shown[2, 3] = np.nan
    cut = rng.random(shape) < 0.2
    cut[0:2, 0:3] = True
    other = [rng.normal(size=shape) for _ in range(4)]
    found = _blocks(Values(shown, *other, cut, shown > 0, "effect"), 2, 3)
    assert found.shown.shape == (4, 4)
    for i in range(4):
        for j in range(4):
            cells = [(a, b) for a in range(2 * i, min(7, 2 * i + 2)) for b in range(3 * j, min(11, 3 * j + 3))]
            free = [cell for cell in cells if not cut[cell] and np.isfinite(shown[cell])]
            if not free:
                assert found.cut[i, j]
                continue
            best = max(free, key=lambda cell: abs(shown[cell]))
            assert found.shown[i, j] == shown[best]
            assert found.low[i, j] == other[0][best]
            assert found.n[i, j] == other[3][best]
            assert not found.cut[i, j]


def test_the_colour_scale_ignores_cuts() -> None:
    ones = np.ones((1, 3))
    values = Values(
        np.array([[0.2, -0.4, 9.0]]), ones, ones, ones, ones, np.array([[False, False, True]]), ones > 2, "recovery"
    )
    assert values.limit == pytest.approx(0.4)
    assert values.counts == (0, 2)
    untested = replace(values, p=np.array([[np.nan, 1.0, np.nan]]))
    assert untested.counts == (0, 1)
    assert Panel("k", "heatmap", "t", "denoise", "", "", ("a",), ("0", "1", "2"), {"m": values}).note == ""


def test_a_role_that_is_a_mean_over_positions_is_said_to_be_one(tmp_path: Path) -> None:
    rows = [
        synthetic.summary_row(sweep="m", site="mlp_out", layer=layer, position_role=role, note=note)
        for layer in range(2)
        for role, note in (("further", "mean over up to 3 positions of the role, patched one at a time"), ("last", ""))
    ]
    (panel,) = panels(load(synthetic.build(tmp_path / "a", rows=rows)))
    assert "mean over the positions of the role, patched one at a time" in panel.note
    joint = [row | {"note": ""} for row in rows]
    (panel,) = panels(load(synthetic.build(tmp_path / "b", rows=joint)))
    assert panel.note == ""


@pytest.mark.parametrize(("roles", "starred"), [(["subject_last", "last"], True), (["further", "last"], False)])
def test_a_star_is_explained_where_there_is_one(tmp_path: Path, roles: list[str], starred: bool) -> None:
    rows = [{**row, "position": None} for row in synthetic.residual_rows(np.random.default_rng(0), roles)]
    study = load(synthetic.build(tmp_path / "out", rows=rows))
    (panel,) = panels(study)
    assert ("last subject token*" in panel.rows) is starred
    assert ("A star marks tokens of the subject." in panel.note) is starred
    drawn = draw(panel, panel.metrics["logit_diff"], "logit_diff").axes[0].get_xlabel()
    assert ("* token of the subject" in drawn) is starred

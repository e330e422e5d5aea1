"""Pages and figures: what stands in them, that everything is escaped, and words for numbers."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engramscope.editing.edit_words import share
from engramscope.editing.figures import Bar, Curve, Point, bars, curves, look_of, plane
from engramscope.editing.findings import table_findings
from engramscope.editing.outcome import Outcome
from engramscope.editing.table_page import write_table_page
from engramscope.editing.words import better, cell, label_words, plain, sentences, table_lines
from engramscope.evaluate.case import CaseResult, Row
from engramscope.records.fact import Fact
from engramscope.records.record import Record

EVIL = '<script>alert("1")</script>&{{x}}'


def about(name: str = "mini") -> dict[str, Any]:
    return {
        "kind": "table4", "model": {"name": name, "model_type": "gpt2", "dtype": "float32", "weight_hash": "ab" * 32},
        "protocol": {"records": {"file_sha256": None, "file": EVIL, "sha256": "0" * 64}, "references": None,
                     "ties": "", "collapsed": ""},
        "skipped": [{"label": "ke", "editor": "ke", "why": EVIL}], "texts": 2, "texts_from": EVIL, "perplexity": 10.0,
        "records_available": 9, "records_notes": [EVIL], "settings": {"rome": {"editor": "rome", "preset": None,
        "texts": EVIL}}, "seed": 0,
    }  # fmt: skip


def outcome(record: str, scores: tuple[float, float, float], *, note: str = "") -> Outcome:
    rows = tuple(Row(record, name, 0, value) for name, value in zip(("ES", "PS", "NS"), scores, strict=True))
    return Outcome(record, case=CaseResult(record, rows, True, (f"{EVIL} begins and {EVIL} goes on",)), notes=(note,))


def findings(name: str = "mini") -> dict[str, Any]:
    draw = np.random.default_rng(0)
    records = [
        Record(
            f"r{n}", Fact(f"{EVIL} {n} is", f"{EVIL} {n}", f"{EVIL}x", EVIL, f"r{n}"), generation=(f"{EVIL} begins",)
        )
        for n in range(40)
    ]

    def column(es: float, ps: float, ns: float) -> list[Outcome]:
        return [
            outcome(record.id, tuple(float(draw.random() < share) for share in (es, ps, ns)), note=EVIL)  # pyright: ignore[reportArgumentType]
            for record in records
        ]

    outcomes = {
        "none": column(0.02, 0.02, 0.98), "rome": column(1.0, 0.95, 0.9), "ft": column(1.0, 0.6, 0.3),
        "random_site": column(0.9, 0.9, 0.92),
    }  # fmt: skip
    unlike = [Record(one.id, one.fact, generation=one.generation) for one in records]
    return table_findings(outcomes, unlike, about(name))


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


@pytest.fixture
def real_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    from engramscope.report.small_page import embedded_figure

    monkeypatch.setattr("engramscope.editing.table_page.embedded_figure", embedded_figure)


@pytest.mark.usefixtures("real_figures")
def test_the_page_is_one_file_in_which_nothing_of_the_data_is_markup(tmp_path: Path) -> None:
    found = findings()
    write_table_page(tmp_path, found)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    parser = Tags()
    parser.feed(text)
    assert "script" not in parser.tags
    assert all(link.startswith(("#", "data:image/svg+xml;base64,")) for link in parser.links)
    assert sum(link.startswith("data:") for link in parser.links) == 5  # S, ES, PS, NS, and the plane
    assert text.count("&lt;script&gt;") > 20
    write_table_page(tmp_path, found)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == text


def test_sentences_say_who_is_ahead_and_who_cannot_be_told_apart() -> None:
    said = sentences(findings())[0]
    assert said.startswith(("Of 3 editors on 40 records, ROME has the highest S", "Of 3 editors on 40 records, random"))
    assert re.search(r"ahead of FT beyond chance", said)
    assert re.search(r"cannot be told from (random site|ROME)", said)
    alone = findings()
    for one in alone["differences"]:
        one["p_max_t"] = nan
    assert "cannot be told" not in sentences(alone)[0]


def test_a_difference_that_no_resample_changes_has_no_interval(tmp_path: Path) -> None:
    records = [Record(f"r{n}", Fact(f"S{n} is", f"S{n}", "x", "y", f"r{n}")) for n in range(6)]
    outcomes = {name: [outcome(one.id, (1.0, n % 2, 0.5)) for n, one in enumerate(records)] for name in ("ft", "rome")}
    found = table_findings(outcomes, records, about())
    text = write_table_page(tmp_path, found).read_text(encoding="utf-8")
    assert "0.0 to 0.0" not in text


def test_who_leads_on_easier_records_only_is_not_called_ahead() -> None:
    records = [Record(f"r{n}", Fact(f"S{n} is", f"S{n}", "x", "y", f"r{n}")) for n in range(40)]
    # one editor fails on the hard half; on the easy half it is behind
    some = [outcome(one.id, (1.0, float(n % 3 > 0), 0.7)) for n, one in enumerate(records)]
    outcomes = {
        "ft": [*some[:20], *(Outcome(one.id, "failed: no") for one in records[20:])],
        "rome": [outcome(one.id, (1.0, 1.0, 1.0) if n < 20 else (0.1, 0.1, 0.1)) for n, one in enumerate(records)],
    }
    found = table_findings(outcomes, records, about())
    said = sentences(found)[0]
    assert "FT has the highest S" in said
    assert "It is ahead of" not in said
    assert "On the 20 records that all editors have, ROME is ahead of it beyond chance" in said


def test_published_rows_stand_below_ours() -> None:
    lines = table_lines(findings("gpt2-xl"))
    assert [line[0] for line in lines if line[0]] == [
        "no edit", "  published", "ROME", "  published", "FT", "  published", "random site",
    ]  # fmt: skip
    assert lines[lines[0].index("") + 3][1:5] == ["30.5", "22.2 (0.9)", "24.7 (0.8)", "78.1 (0.6)"]
    assert all(line[0] != "  published" for line in table_lines(findings()))


def test_cells_are_written_as_published() -> None:
    one = {"mean": -3.44, "low": -3.74, "high": -3.14, "better_low": -3.8, "better_high": -3.0}
    assert cell(one) == "−3.4 (0.3)"
    assert better(one) == "−3.8 to −3.0"
    assert cell({**one, "low": nan, "high": nan}) == "−3.4"
    assert cell(None) == "–"
    # nats are small, and not times 100
    nats = {"measure": "NKL", "mean": 0.0532, "low": -0.0237, "high": 0.1301, "better_low": 0.0066, "better_high": inf}
    assert (cell(nats), better(nats)) == ("0.053 (0.077)", "0.007 to ∞")
    assert cell({**nats, "mean": -0.0001, "low": nan}) == "0.000"
    assert better({**one, "better_low": None}) == ""
    assert (plain(-0.04), plain(inf), plain(99.96)) == ("0.0", "∞", "100.0")
    assert [label_words(label) for label in ("ke-cf", "ke_cf", "rome-2022", "mine", "mine-2")] == [
        "KE-CF", "KE-CF", "ROME 2022", "mine", "mine-2",
    ]  # fmt: skip


def test_probabilities_near_the_ends_are_not_rounded_to_them() -> None:
    narrow = "\u202f"
    assert share(0.0) == f"0{narrow}%"
    assert share(1e-9) == f"under 0.1{narrow}%"
    assert share(0.99999) == f"over 99.9{narrow}%"
    assert share(1.0) == f"100{narrow}%"
    assert share(0.5) == f"50{narrow}%"


def test_bars_stand_where_the_numbers_are() -> None:
    figure = bars(
        [Bar("none", 20.0, 15.0, 25.0, "unedited"), Bar("a", -5.0, nan, nan, published=-4.0), Bar("b", nan, nan, nan)]
    )
    (axes,) = figure.axes
    assert [patch.get_width() for patch in axes.patches] == [20.0, -5.0, 0.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["none", "a", "b"]
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    assert ([15.0, 25.0], [0, 0]) in lines
    assert ([-4.0], [1]) in lines
    assert "none" in [text.get_text() for text in axes.texts]


def test_the_plane_has_a_point_with_both_intervals_for_each_editor() -> None:
    figure = plane([Point("a", 90.0, 20.0, (80.0, 95.0), (10.0, 30.0)), Point("b", 90.0, 21.0, (nan, nan), (nan, nan))],
                   "x", "y", "best")  # fmt: skip
    (axes,) = figure.axes
    points = [tuple(np.asarray(one.get_offsets())[0]) for one in axes.collections]
    assert points == [(90.0, 20.0), (90.0, 21.0)]
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    assert ([80.0, 95.0], [20.0, 20.0]) in lines
    assert ([90.0, 90.0], [10.0, 30.0]) in lines
    names = {text.get_text(): text.xy for text in axes.texts}
    assert abs(names["a"][1] - names["b"][1]) >= 4
    # along a curve the harmonic mean is the same
    x, y = axes.lines[0].get_data()
    means = 2 / (1 / np.asarray(x)[5:] + 1 / np.asarray(y)[5:])
    np.testing.assert_allclose(means, means[0])


@pytest.mark.parametrize("heights", [[100.0] * 12, [0.0] * 12, [99.0, 98.0, 50.0, 3.0, 2.0, 1.0, 0.0]])
def test_names_beside_the_plane_do_not_lie_upon_each_other(heights: list[float]) -> None:
    none = (nan, nan)
    (axes,) = plane([Point(f"e{n}", 50.0, y, none, none) for n, y in enumerate(heights)], "x", "y", "best").axes
    names = {text.get_text(): text.xy[1] for text in axes.texts}
    found = [names[f"e{n}"] for n in range(len(heights))]
    assert np.diff(found).max() <= -4.4 + 1e-9
    assert min(found) >= 0
    assert max(found) <= max(max(heights), 4.4 * len(heights))


def test_curves_have_an_axis_that_fits_them() -> None:
    few = curves([Curve("a", [0, 1, 2], [0, 50, 100], [0, 40, 90], [0, 60, 100])], "edits")
    assert few.axes[0].get_xscale() == "linear"
    assert few.axes[0].get_ylim() == (-3, 103)
    many = curves([Curve("a", [0, 1, 100], [1.0, 2.0, 300.0])], "edits", percent=False)
    assert (many.axes[0].get_xscale(), many.axes[0].get_yscale()) == ("symlog", "log")
    flat = curves([Curve("a", [0, 1], [2.0, 3.0])], "edits", percent=False)
    assert flat.axes[0].get_yscale() == "linear"
    assert len({look_of(number) for number in range(15)}) == 15

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic
from browser import Browser, chromium

from engramscope.errors import ResultsError
from engramscope.report import tables, write_report
from engramscope.report.escape import plotly_text, script_json
from engramscope.report.load import load
from engramscope.report.page import context
from engramscope.report.panels import panels
from engramscope.results import ResultsFolder, read_summary


class Page(HTMLParser):
    """What a browser would make of a page: its tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data


def _page(folder: Path) -> Page:
    return Page(write_report(folder, figures=False).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.build(tmp_path_factory.mktemp("usual") / "out")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.build(tmp_path_factory.mktemp("hostile") / "out", hostile=True)


def test_one_file_that_needs_nothing_else(usual: Path) -> None:
    page = _page(usual)
    assert page.tags.count("script") == 3
    assert "link" not in page.tags
    assert "img" not in page.tags
    assert "iframe" not in page.tags
    wanted = [value for _, name, value in page.attributes if name in {"src", "href", "srcset", "action", "data"}]
    assert all(value.startswith("#") for value in wanted), wanted
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    style = re.search(r"<style>(.*?)</style>", (usual / "report.html").read_text(encoding="utf-8"), re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_the_sections_stand_in_the_order_of_the_question(usual: Path) -> None:
    page = _page(usual)
    ids = [value for tag, name, value in page.attributes if tag == "section" and name == "id"]
    assert ids == [
        "answer",
        "audit",
        "where",
        "top",
        "contrast",
        "directions",
        "pairs",
        "provenance",
        "reading",
        "reproduce",
    ]
    for text in ("clap_epilepsy", "The answer stands in the prompt", "below min_gap", "the prompt has no such position",
                 "transformers", "sha256:5f5f", 'name = "epilepsy"', "write-back identity"):  # fmt: skip
        assert text in page.text, text


def test_hostile_prompts_are_text_and_nothing_else(
    hostile: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page = _page(hostile)
    assert page.tags.count("script") == 3
    for evil in synthetic.HOSTILE:
        assert evil in page.text, evil
    assert "{{7*7}}" in page.text
    # the same study with tame prompts of the same form must give the very same elements with the same attributes
    monkeypatch.setattr(synthetic, "HOSTILE", tuple(f"tame{i}" for i in range(len(synthetic.HOSTILE))))
    tame = _page(synthetic.build(tmp_path / "tame", hostile=True))
    assert page.tags == tame.tags
    assert [item[:2] for item in page.attributes] == [item[:2] for item in tame.attributes]


def test_the_data_of_the_figures_cannot_end_its_element_nor_become_plotlys_html(hostile: Path) -> None:
    raw = write_report(hostile, figures=False).read_text(encoding="utf-8")
    block = raw.split('id="figure-data">', 1)[1].split("</script>", 1)[0]
    assert not set("<>&") & set(block)
    labels = [label for panel in json.loads(block).values() for label in panel["rows"]]
    assert any("script" in label for label in labels)
    assert not [label for label in labels if "<" in label or ">" in label]
    assert plotly_text("<b>&lt;") == "&lt;b&gt;&amp;lt;"
    value = {"a": "</script>\u2028&", "b": [1, None]}
    assert json.loads(script_json(value)) == value
    with pytest.raises(ValueError, match="JSON"):
        script_json(float("nan"))


def _figures(page: Page) -> dict[str, Any]:
    return json.loads(page.scripts[1])


def test_every_number_in_the_figures_is_the_number_of_the_table(usual: Path) -> None:
    figures = _figures(_page(usual))
    summary = read_summary(usual)
    seen = 0
    for row in summary.to_dict("records"):
        lost = row["direction"] == "noise"
        expected = 1 - row["estimate"] if lost else row["estimate"]
        interval = sorted([1 - row["low"], 1 - row["high"]]) if lost else [row["low"], row["high"]]
        if row["sweep"] == "heads":
            figure, i, j = figures[f"heads-{row['direction']}"], row["head"], row["layer"]
        elif row["sweep"] == "residual":
            figure, i, j = figures["residual-denoise"], row["position"], row["layer"]
        elif row["sweep"] in {"mlp", "attention"}:
            figure, i, j = figures["layers-denoise"], ["mlp", "attention"].index(row["sweep"]), row["layer"]
        else:
            figure = figures["places-denoise"]
            i, j = ["first feed-forward layer", "final layer"].index(row["sweep"]), 0
        values = figure["metrics"][row["metric"]]
        assert values["shown"][i][j] == pytest.approx(expected, rel=1e-3)
        assert [values["low"][i][j], values["high"][i][j]] == pytest.approx(interval, rel=1e-3, abs=1e-9)
        assert values["cut"][i][j] == int(row["cut"])
        assert values["detected"][i][j] == int(row["detected"])
        assert values["n"][i][j] == row["n"]
        assert (values["p"][i][j] is None) == bool(row["cut"])
        seen += 1
    drawn = sum(
        value is not None
        for key, figure in figures.items() if not key.startswith("sites-")
        for values in figure["metrics"].values() for line in values["shown"] for value in line
    )  # fmt: skip
    assert drawn == seen == len(summary)
    assert figures["sites-denoise"]["metrics"] == figures["layers-denoise"]["metrics"]
    assert figures["residual-denoise"]["rows"][2] == "2  Lennox* | absence"  # a token of the subject
    assert figures["residual-denoise"]["columns"] == ["0", "1", "2", "3", "4", "5"]


def test_no_key_that_the_template_reads_is_hidden_by_a_method_of_dict(usual: Path) -> None:
    def walk(value: object) -> Iterator[str]:
        if isinstance(value, dict):
            for key, item in value.items():
                yield str(key)
                yield from walk(item)
        elif isinstance(value, list | tuple):
            for item in value:
                yield from walk(item)

    study = load(usual)
    rows = {key: value for key, value in context(study, panels(study)).items() if key != "cuts"}
    # "items" and "values" are read as row["values"] in the template
    assert set(walk(rows)) & set(dir(dict)) <= {"items", "values"}
    template = (Path(__file__).parents[2] / "src/engramscope/report/templates/report.html.j2").read_text(
        encoding="utf-8"
    )
    assert not re.findall(r"\.(items|values|keys|clear|get|pop|update|copy)\b", template)


def test_what_the_tables_say(usual: Path) -> None:
    study = load(usual)
    shown = context(study, panels(study))
    assert [row["differs"] for row in shown["contrast"]] == [True, False] * 4
    sizes = [abs(row["sort"]) for row in shown["top"]]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == 15
    assert not any(row["name"].startswith(("logits", "L5 resid_post at position 6")) for row in shown["top"])
    table = shown["both"][0]["cells"]
    summary = read_summary(usual)
    heads = summary[(summary["sweep"] == "heads") & (summary["metric"] == "logit_diff")]
    flags = heads.pivot_table(index=["layer", "head"], columns="direction", values="detected", aggfunc="max").astype(
        bool
    )
    for first in (True, False):
        for second in (True, False):
            expected = int(((flags["denoise"] == first) & (flags["noise"] == second)).sum())
            assert table[f"{int(first)}{int(second)}"]["count"] == expected
    assert sum(part["count"] for part in table.values()) == 48
    assert table["11"]["names"][0] == "L3H5"
    found = [(row["values"], row["difference"], row["interval"]) for row in shown["contrast_cells"]]
    percent = "\u202f%"
    assert found == [
        ([f"80{percent}", f"50{percent}"], f"30{percent}", f"10{percent} to 40{percent}"),
        ([f"−80{percent}", f"−50{percent}"], f"−30{percent}", f"−40{percent} to −10{percent}"),
    ]
    assert shown["facts"][1] == ("Pairs", "24, 22 of them in the recovery")
    assert shown["facts"][2] == ("Cells", "152")


def test_the_pairs_behind_a_recovery_are_named(tmp_path: Path) -> None:
    rows = [
        synthetic.summary_row(sweep="heads", site="z", layer=layer, head=0, estimate=0.5 - layer / 10, **more)
        for layer, more in enumerate(
            ({"n_pooled": 9}, {"n_pooled": 24}, {"n_pooled": 0, "estimate_kind": "effect", "recovery": None})
        )
    ]
    table = tables.top_components(load(synthetic.build(tmp_path / "out", rows=rows)))
    assert [row["n"] for row in table] == ["9 of 24", "24", "24"]


def test_exclusions_are_counted_by_reason_and_the_first_are_named(tmp_path: Path) -> None:
    wrong = "its gap in logit_diff is of the wrong sign"
    excluded = [{"pair": f"a-{n}", "reason": f"{wrong}: clean -{n}.5, corrupted 1e-0{n}"} for n in range(1, 9)]
    excluded += [{"pair": "b-1", "reason": "the model does not know it"}]
    page = _page(synthetic.build(tmp_path / "out", excluded=excluded))
    text = " ".join(page.text.split())
    assert f"8 excluded: {wrong}. a-1 (clean −1.5, corrupted 1e-01); a-2" in text
    assert "a-6 (clean −6.5, corrupted 1e-06); and 2 more." in text
    assert "1 excluded: the model does not know it. b-1." in text
    assert text.count(wrong) == 1
    assert text.count("a-8 (clean −8.5") == 1  # in the list of all of them


def test_cells_without_a_test_are_in_no_table_of_both_directions(tmp_path: Path) -> None:
    rows = [
        synthetic.summary_row(sweep="heads", site="z", layer=layer, head=0, direction=direction, metric="kl")
        for layer in range(2) for direction in ("denoise", "noise")
    ]  # fmt: skip
    untested = [row | {"p": None, "p_adjusted": None, "q": None, "detected": False} for row in rows]
    assert tables.both_directions(load(synthetic.build(tmp_path / "a", rows=rows)))
    assert tables.both_directions(load(synthetic.build(tmp_path / "b", rows=untested))) == []


def test_a_sparse_manifest_is_enough(tmp_path: Path) -> None:
    path = synthetic.build(tmp_path / "out")
    full = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    sparse = {key: full[key] for key in ("schema", "study_hash", "status")}
    for manifest in (sparse, {**full, "parity": None, "findings": {}, "audit": None, "study": None}):
        (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        page = _page(path)
        assert page.tags.count("script") == 3
        assert "15 of 150 cells" in page.text or "detected" in page.text


@pytest.mark.parametrize("kind", ["effect", "no rows", "all cut", "one cell"])
def test_unusual_studies_have_a_page_too(tmp_path: Path, kind: str) -> None:
    effect = [
        synthetic.summary_row(sweep="zero", site="mlp_out", layer=layer, direction="noise", estimate=-0.01 * layer,
                              estimate_kind="effect", recovery=None, recovery_low=None, recovery_high=None)
        for layer in range(4)
    ]  # fmt: skip
    rows = {
        "effect": effect,
        "no rows": [synthetic.summary_row(sweep="x", site="z", cut=True)][:0],
        "all cut": [synthetic.summary_row(sweep="x", site="logits", cut=True, estimate=1.0)],
        "one cell": [
            synthetic.summary_row(sweep="x", site="mlp_out", layer=2, estimate=0.5, low=None, high=None, p=None)
        ],
    }[kind]
    if not rows:
        with pytest.raises(ValueError, match="missing or unknown"):
            synthetic.build(tmp_path / "none", rows=rows)
        return
    path = synthetic.build(tmp_path / "out", rows=rows, findings={})
    write_report(path)
    page = _page(path)
    assert ("No cell could be tested" in page.text) == (kind == "all cut")
    assert ("logits" in page.text) or kind == "one cell"
    if kind == "effect":
        assert _figures(page)["layers-noise"]["metrics"]["logit_diff"]["shown"] == [[0.0, -0.01, -0.02, -0.03]]


def test_a_sweep_of_a_hundred_thousand_cells_stays_usable(tmp_path: Path) -> None:
    rows = [
        synthetic.summary_row(sweep="large", site="resid_post", layer=layer, position=position,
                              position_role="further", estimate=((layer * 31 + position * 17) % 97) / 100)
        for layer in range(100) for position in range(1000)
    ]  # fmt: skip
    path = synthetic.build(tmp_path / "out", rows=rows)
    began = time.monotonic()
    report = write_report(path, figures=False)
    assert time.monotonic() - began < 60
    assert report.stat().st_size < 6_500_000
    values = _figures(Page(report.read_text(encoding="utf-8")))["large-denoise"]["metrics"]["logit_diff"]["shown"]
    assert sum(map(len, values)) <= 8_000


def test_what_cannot_be_reported_is_a_sentence(tmp_path: Path, usual: Path) -> None:
    with pytest.raises(ResultsError, match="no results folder"):
        write_report(tmp_path / "none")
    ResultsFolder.create(tmp_path / "half", "", "h").close()
    with pytest.raises(ResultsError, match=r"summary\.csv"):
        write_report(tmp_path / "half")
    copy = tmp_path / "copy"
    shutil.copytree(usual, copy)
    (copy / "figures").unlink() if (copy / "figures").is_file() else shutil.rmtree(copy / "figures", ignore_errors=True)
    (copy / "figures").write_text("in the way")
    with pytest.raises(ResultsError, match="figures"):
        write_report(copy)


needs_chromium = pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


_OVERFLOW = "document.documentElement.scrollWidth - window.innerWidth"
_DRAW_ALL = "window.dispatchEvent(new Event('beforeprint'))"


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_hostile_runs_and_the_page_fits(hostile: Path, browser: Browser, width: int) -> None:
    browser.open(write_report(hostile, figures=False), width)
    browser.evaluate(_DRAW_ALL)
    assert browser.evaluate("window.hacked === undefined")
    assert browser.problems() == []
    assert browser.evaluate(_OVERFLOW) <= 0
    assert browser.evaluate("document.querySelectorAll('.main-svg').length") >= 6
    shown = browser.evaluate("Array.from(document.querySelectorAll('.plot text')).map(t => t.textContent).join('|')")
    assert "<" in shown
    assert (
        browser.evaluate("document.querySelectorAll('.plot a, .plot tspan[style*=bold], main script, main img').length")
        == 0
    )


@needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False), (768, False)])
def test_the_page_is_alive_and_fits(usual: Path, browser: Browser, width: int, dark: bool) -> None:
    browser.open(write_report(usual, figures=False), width, dark=dark)
    browser.evaluate(_DRAW_ALL)
    assert browser.problems() == []
    assert browser.evaluate(_OVERFLOW) <= 0
    assert browser.evaluate("document.querySelectorAll('.plot .main-svg').length >= 6")
    first = "document.querySelector('[data-panel=\"heads-denoise\"]').data[0].z[5][3]"
    before = browser.evaluate(first)
    browser.evaluate("document.querySelector('[data-metric=\"prob\"]').click()")
    summary = read_summary(usual)
    heads = summary[(summary["sweep"] == "heads") & (summary["layer"] == 3) & (summary["head"] == 5)]
    for metric, found in (("logit_diff", before), ("prob", browser.evaluate(first))):
        row = heads[(heads["direction"] == "denoise") & (heads["metric"] == metric)]
        assert found == pytest.approx(100 * row["estimate"].iloc[0], rel=1e-3)
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(251, 250, 247)") != dark


@needs_chromium
def test_the_pair_table_searches_and_sorts(usual: Path, browser: Browser) -> None:
    browser.open(write_report(usual, figures=False))
    rows = "Array.from(document.querySelectorAll('#pair-table tbody tr')).filter(r => !r.hidden)"
    assert browser.evaluate(f"{rows}.length") == 24
    browser.evaluate("document.querySelector('[data-search]').value = 'P00'")
    browser.evaluate("document.querySelector('[data-search]').dispatchEvent(new Event('input'))")
    assert browser.evaluate(f"{rows}.length") == 10
    button = "Array.from(document.querySelectorAll('#pair-table thead button')).find(b => b.textContent === 'clean')"
    pick = f"{rows}.map(r => Number(r.cells[4].textContent.replace('−', '-')))"
    browser.evaluate(f"{button}.click()")
    values = browser.evaluate(pick)
    assert values == sorted(values)
    assert len(set(values)) > 3
    browser.evaluate(f"{button}.click()")
    assert browser.evaluate(pick) == sorted(values, reverse=True)


@needs_chromium
def test_many_pairs_come_in_pages(tmp_path: Path, browser: Browser) -> None:
    import numpy as np

    pairs = synthetic.pair_rows(np.random.default_rng(0), False, 230)
    browser.open(write_report(synthetic.build(tmp_path / "out", pairs=pairs), figures=False))
    rows = "Array.from(document.querySelectorAll('#pair-table tbody tr')).filter(r => !r.hidden)"
    assert browser.evaluate(f"{rows}.length") == 100
    for _ in range(2):
        browser.evaluate("document.querySelector('[data-step=\"1\"]').click()")
    assert browser.evaluate(f"{rows}.length") == 30
    assert browser.evaluate("document.querySelector('[data-step=\"1\"]').disabled")
    assert browser.evaluate(f"{rows}[0].cells[0].textContent") == "p200"


def test_headings_keep_their_capitals(tmp_path: Path) -> None:
    rows = [{**row, "metric": "kl"} for row in synthetic.head_rows(np.random.default_rng(0))]
    pairs = [
        {**row, "clean_kl": 0.0, "corrupted_kl": 1.0} for row in synthetic.pair_rows(np.random.default_rng(0), False)
    ]
    text = _page(synthetic.build(tmp_path / "out", rows=rows, pairs=pairs)).text
    assert "KL divergence" in text
    assert "Kl divergence" not in text


@needs_chromium
def test_a_caption_is_seen_whole_and_a_table_that_goes_on_has_a_shade(tmp_path: Path, browser: Browser) -> None:
    cells = "".join(f"<td>{'wide' * 10}</td>" for _ in range(6))
    table = f"<table><caption>{'A caption of many words. ' * 6}</caption><tr>{cells}</tr></table>"
    page = tmp_path / "page.html"
    css = resources.files("engramscope.report").joinpath("templates", "report.css").read_text(encoding="utf-8")
    head = f'<!DOCTYPE html><meta name="viewport" content="width=device-width"><style>{css}</style>'
    page.write_text(f"{head}<main><div class=scroll>{table}</div></main>", encoding="utf-8")
    browser.open(page, width=420)
    box = "document.querySelector('.scroll')"
    assert browser.evaluate(f"{box}.scrollWidth > 2 * {box}.clientWidth")
    for _ in range(2):  # as it comes, and at its other end
        fits = f"(c => c.left >= b.left - 1 && c.right <= b.right + 1)(document.querySelector('caption').{_BOX})"
        assert browser.evaluate(f"(b => {fits})({box}.{_BOX})")
        browser.evaluate(f"{box}.scrollLeft = 9999")
    assert browser.evaluate(f"getComputedStyle({box}).backgroundAttachment") == "local, local, scroll, scroll"
    assert browser.evaluate("document.documentElement.scrollWidth") == 420


_BOX = "getBoundingClientRect()"

"""The figures as a reader sees them: bars against their axes, in the SVG files, and the tables beside them."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest

from engramscope.corpus import Corpus, read_files

from .test_files import write

_SVG = "{http://www.w3.org/2000/svg}"
_NUMBER = r"-?\d+(?:\.\d+)?"


@dataclass(frozen=True)
class Bar:
    """A filled rectangle; vertical places grow downwards, as on a screen."""

    colour: str
    left: float
    right: float
    top: float
    bottom: float

    @property
    def centre(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2


class Drawing:
    """What an SVG file of Matplotlib's shows; texts are drawn as outlines, with the words in a comment before them."""

    def __init__(self, path: Path) -> None:
        builder = ElementTree.TreeBuilder(insert_comments=True)
        self._root = ElementTree.fromstring(path.read_bytes(), ElementTree.XMLParser(target=builder))
        self._axes = self._group("axes_1")

    def _group(self, name: str) -> Element:
        (found,) = self._root.iterfind(f".//{_SVG}g[@id='{name}']")
        return found

    def bars(self) -> list[Bar]:
        """All rectangles of the axes but their own background."""
        return [
            bar for bar in map(_bar, self._axes.iterfind(f"./{_SVG}g/{_SVG}path")) if bar and bar.colour != "#ffffff"
        ]

    def ticks(self, axis: str) -> list[tuple[str, float]]:
        """Label and place of the ticks of "x" or "y"."""
        groups = [one for one in self._axes.iter(f"{_SVG}g") if one.get("id", "").startswith(f"{axis}tick_")]
        return [(_words(one)[0], float(next(one.iter(f"{_SVG}use")).get(axis, "nan"))) for one in groups]

    def scale(self, axis: str) -> Callable[[float], float]:
        """From places to numbers, by the first tick and the last."""
        (one, low), *_, (other, high) = self.ticks(axis)
        return lambda place: float(one) + (place - low) / (high - low) * (float(other) - float(one))

    def notes(self) -> list[tuple[str, float, float]]:
        """The texts within the axes that belong to no axis, with the left end of their base lines."""
        groups = [one for one in self._axes.iterfind(f"./{_SVG}g") if one.get("id", "").startswith("text_")]
        return [(_words(one)[0], *_place(one)) for one in groups]

    def legend(self) -> dict[str, str]:
        """Words of the legend by colour."""
        group = self._group("legend_1")
        colours = [bar.colour for bar in map(_bar, group.iter(f"{_SVG}path")) if bar and bar.colour != "#ffffff"]
        return dict(zip(colours, _words(group), strict=True))


def _bar(path: Element) -> Bar | None:
    corners = re.findall(rf"[ML] ({_NUMBER}) ({_NUMBER})", path.get("d", ""))
    colour = re.search(r"fill: (#\w+)", path.get("style", ""))
    if len(corners) != 4 or colour is None:
        return None
    across, down = ([float(number) for number in numbers] for numbers in zip(*corners, strict=True))
    return Bar(colour.group(1), min(across), max(across), min(down), max(down))


def _words(group: Element) -> list[str]:
    return [(one.text or "").strip() for one in group.iter() if one.tag is ElementTree.Comment]


def _place(group: Element) -> tuple[float, float]:
    (outline,) = group.iterfind(f"{_SVG}g")
    ((across, down),) = re.findall(rf"translate\(({_NUMBER}) ({_NUMBER})\)", outline.get("transform", ""))
    return float(across), float(down)


def rows_of(corpus: Corpus, name: str) -> list[dict[str, str]]:
    with (corpus.folder / name).open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


LONG = "progressive multifocal leukoencephalopathy of the elderly"
NAMES = ["absence", "surgery", LONG, *(f"word {n}" for n in range(3, 25))]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Twenty-five abstracts: the n-th keyword is in 25 - n of them; the second one is written in two ways in most."""
    folder = tmp_path_factory.mktemp("figures")
    rows: list[dict[str, str]] = []
    for n in range(25):
        keywords = [*NAMES[: 25 - n], *(["SURGERY"] if n < 20 else [])]
        text = (
            f"Number {n}." + " EEG, EEG, EEG." * (n < 3) + " A seizure." * (n < 7) + " Aura." * (1 + (n < 2)) * (n < 5)
        )
        year = "1998" if n < 12 else "2001" if n < 21 else "2004" if n < 24 else ""
        rows.append({"Abstract": text, "Keywords": "; ".join(keywords), "Year": year})
    return read_files([write(folder, "csv", rows)], folder / "out", terms=["EEG", "seizure", "spike wave", "aura"])


def test_the_bars_of_the_terms_are_their_mentions_and_abstracts(corpus: Corpus) -> None:
    expected = {"EEG": (9, 3), "seizure": (7, 7), "spike wave": (0, 0), "aura": (7, 5)}
    listed = [row for row in rows_of(corpus, "keywords.csv") if row["kind"] == "term"]
    assert {row["text"]: (int(row["mentions"]), int(row["documents"])) for row in listed} == expected
    drawing = Drawing(corpus.folder / "figures" / "terms.svg")
    legend, value, names = drawing.legend(), drawing.scale("x"), drawing.ticks("y")
    assert sorted(legend.values()) == ["abstracts", "mentions"]
    seen: dict[str, dict[str, float]] = {"mentions": {}, "abstracts": {}}
    for bar in drawing.bars():
        name = min(names, key=lambda tick: abs(tick[1] - bar.centre[1]))[0]
        assert value(bar.left) == pytest.approx(0, abs=1e-3)
        seen[legend[bar.colour]][name] = value(bar.right)
        # the number stands right of the end of its bar, on its height
        ((number, across),) = [(said, x) for said, x, y in drawing.notes() if bar.top < y < bar.bottom]
        assert 0 < across - bar.right < 6
        assert float(number) == pytest.approx(value(bar.right), abs=1e-3)
    for place, word in enumerate(("mentions", "abstracts")):
        assert seen[word] == pytest.approx({name: pair[place] for name, pair in expected.items()}, abs=1e-3)
    assert [name for name, _ in sorted(names, key=lambda tick: tick[1])] == list(expected), "from the top"


def test_the_bars_of_the_keywords_are_abstracts_not_mentions(corpus: Corpus) -> None:
    listed = [row for row in rows_of(corpus, "keywords.csv") if row["kind"] == "keyword"]
    assert [(row["text"], int(row["documents"])) for row in listed] == [(name, 25 - n) for n, name in enumerate(NAMES)]
    assert [int(row["mentions"]) for row in listed[:3]] == [25, 24 + 20, 23]
    drawing = Drawing(corpus.folder / "figures" / "keywords.svg")
    names, value = sorted(drawing.ticks("y"), key=lambda tick: tick[1]), drawing.scale("x")
    bars = sorted(drawing.bars(), key=lambda bar: bar.top)
    assert [name for name, _ in names] == [NAMES[0], NAMES[1], f"{LONG[:38]}…", *NAMES[3:20]]
    assert [bar.centre[1] for bar in bars] == pytest.approx([place for _, place in names], abs=1e-3)
    assert [value(bar.right) for bar in bars] == pytest.approx([25 - n for n in range(20)], abs=1e-3)
    assert [value(bar.left) for bar in bars] == pytest.approx([0] * 20, abs=1e-3)


def years_drawn(corpus: Corpus) -> list[tuple[float, float]]:
    """(year, abstracts) of each bar, from the left."""
    drawing = Drawing(corpus.folder / "figures" / "years.svg")
    year, value = drawing.scale("x"), drawing.scale("y")
    bars = sorted(drawing.bars(), key=lambda bar: bar.left)
    assert [value(bar.bottom) for bar in bars] == pytest.approx([0] * len(bars), abs=1e-3)
    return [(year(bar.centre[0]), value(bar.top)) for bar in bars]


def test_the_bars_of_the_years_stand_on_their_years_and_leave_gaps(corpus: Corpus) -> None:
    expected = [(1998, 12), (1999, 0), (2000, 0), (2001, 9), (2002, 0), (2003, 0), (2004, 3)]
    listed = [(int(row["year"]), int(row["documents"])) for row in rows_of(corpus, "years.csv")]
    assert listed == expected
    assert corpus.manifest["counts"]["noted"]["no_year"] == 1
    assert [number for pair in years_drawn(corpus) for number in pair] == pytest.approx(
        [number for pair in expected for number in pair], abs=1e-3
    )
    ticks = Drawing(corpus.folder / "figures" / "years.svg").ticks("x")
    assert [label for label, _ in ticks] == [str(year) for year, _ in expected]


def test_a_long_span_of_years_has_every_year_on_its_place(tmp_path: Path) -> None:
    expected = dict.fromkeys(range(1931, 2021), 0) | {1931: 2, 1987: 5, 2020: 1}
    rows = [
        {"Abstract": f"Number {n} of {year}.", "Year": str(year)}
        for year, most in expected.items()
        for n in range(most)
    ]
    made = read_files([write(tmp_path, "csv", rows)], tmp_path / "out")
    assert {int(row["year"]): int(row["documents"]) for row in rows_of(made, "years.csv")} == expected
    drawn = years_drawn(made)
    assert [year for year, _ in drawn] == pytest.approx(list(expected), abs=1e-3)
    assert [number for _, number in drawn] == pytest.approx(list(expected.values()), abs=1e-3)

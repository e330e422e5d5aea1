"""Outcomes on disk: whole lines only, one writer, the settings they were begun with."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from engramscope.editing.folder import SETTINGS, outcome_folder
from engramscope.editing.journal import Journal
from engramscope.errors import ResultsError

ROWS = [{"record": "a", "value": 0.1}, {"record": "b\n\u2028ü", "texts": ["x\r\ny", ""]}, {"record": "c"}]


def written(path: Path) -> Journal:
    journal = Journal(path)
    for row in ROWS:
        journal.append(row)
    return journal


def test_what_was_appended_is_read(tmp_path: Path) -> None:
    journal = written(tmp_path / "a.jsonl")
    assert journal.read() == ROWS
    journal.append({"value": math.nan})
    assert journal.read()[-1] == {"value": None}
    assert Journal(tmp_path / "none.jsonl").read() == []


def test_a_journal_cut_off_anywhere_gives_whole_outcomes_and_goes_on(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole.jsonl").path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(whole) + 1):
        journal = Journal(tmp_path / "cut.jsonl")
        journal.path.write_bytes(whole[:length])
        kept = sum(end <= length for end in ends)
        assert journal.read() == ROWS[:kept]
        journal.mend()
        journal.append({"last": length})
        assert journal.read() == [*ROWS[:kept], {"last": length}]


def test_a_damaged_line_ends_what_is_read(tmp_path: Path) -> None:
    journal = written(tmp_path / "a.jsonl")
    data = bytearray(journal.path.read_bytes())
    data[data.index(b'"b') + 1] ^= 1
    journal.path.write_bytes(bytes(data))
    assert journal.read() == ROWS[:1]


def test_a_folder_goes_on_with_its_settings_only(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with outcome_folder(
        out, "table4", {"seed": 0, "model": {"hash": "x"}}, {"ft": {"steps": 5}}, resume=False
    ) as found:
        found["ft"].append(ROWS[0])
    with outcome_folder(
        out, "table4", {"seed": 0, "model": {"hash": "x"}}, {"rome": {}, "ft": {"steps": 5}}, resume=True
    ) as found:
        assert found["ft"].read() == ROWS[:1]
        assert found["rome"].read() == []
    assert set(json.loads((out / SETTINGS).read_text())["methods"]) == {"ft", "rome"}
    # a run with fewer methods does not forget the others
    with outcome_folder(out, "table4", {"seed": 0, "model": {"hash": "x"}}, {"rome": {}}, resume=True):
        pass
    assert set(json.loads((out / SETTINGS).read_text())["methods"]) == {"ft", "rome"}
    for common, methods, said in (
        ({"seed": 1, "model": {"hash": "x"}}, {}, "seed: 0 -> 1"),
        ({"seed": 0, "model": {"hash": "y"}}, {}, 'model.hash: "x" -> "y"'),
        ({"seed": 0, "model": {"hash": "x"}}, {"ft": {"steps": 6}}, "ft.steps: 5 -> 6"),
    ):
        with (
            pytest.raises(ResultsError, match="other settings") as caught,
            outcome_folder(out, "table4", common, methods, resume=True),
        ):
            pass
        assert caught.value.faults[1:] == (f"Changed: {said}.",)
    assert not (out / ".lock").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for resume, said in ((False, "not empty"), (True, "thesis.txt")):
        with (
            pytest.raises(ResultsError, match=said),
            outcome_folder(tmp_path, "table4", {}, {}, resume=resume),
        ):
            pass
    assert [item.name for item in tmp_path.iterdir()] == ["thesis.txt"]
    (tmp_path / SETTINGS).write_text("[1]")
    with pytest.raises(ResultsError, match="not written by"), outcome_folder(tmp_path, "a", {}, {}, resume=True):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_two_writers_are_one_too_many(tmp_path: Path) -> None:
    with (
        outcome_folder(tmp_path / "a", "x", {}, {}, resume=False),
        pytest.raises(ResultsError, match="being written"),
        outcome_folder(tmp_path / "a", "x", {}, {}, resume=True),
    ):
        pass

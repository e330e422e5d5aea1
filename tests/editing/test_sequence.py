"""Edits kept one upon another: what is measured when, and a run that was stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from engramscope.edit.applied import applied_to
from engramscope.edit.editors.ft import FineTuning
from engramscope.edit.storage import load_edit
from engramscope.editing.inputs import Materials
from engramscope.editing.sequence import run_sequence, stops_up_to
from engramscope.editing.sequence_findings import sequence_findings
from engramscope.editing.sequence_page import sequence_remarks, sequence_sentences
from engramscope.errors import InputError, ResultsError
from engramscope.evaluate.evaluate import EvaluateOptions, evaluate_records
from engramscope.evaluate.perplexity import perplexity_of
from tests.editing.test_table4 import TEXTS, editors, lines, refusing
from tests.editing.tiny import in_records, tiny_model, tiny_records

OPTIONS = EvaluateOptions(generation=False, plus=False, divergence=False)


def run(out: Path, count: int = 4, **over: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"model": tiny_model(), "editors": editors("ft"), "sample": 3, **over}
    given = Materials(in_records(6), TEXTS, "two sentences")
    return dict(run_sequence(values.pop("model"), values.pop("editors"), given, out, count=count, **values).findings)


def test_stops_are_those_of_a_logarithmic_axis() -> None:
    assert stops_up_to(1) == (1,)
    assert stops_up_to(5) == (1, 2, 5)
    assert stops_up_to(60) == (1, 2, 5, 10, 20, 50, 60)


def test_edits_add_up_and_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = tiny_model()
    before = model.weight_hash()
    findings = run(tmp_path / "a", model=model)
    assert model.weight_hash() == before
    assert not applied_to(model.hf)
    points = findings["curves"]
    assert [(point["position"], point["edits"], point["cases"]) for point in points] == [
        (0, 0, 3), (1, 1, 1), (2, 2, 2), (4, 4, 3),
    ]  # fmt: skip
    # one after the other by hand, each computed with those before it in place
    by_hand = tiny_model()
    editor, records = editors("ft")["ft"], tiny_records(6)
    for record in records[:2]:
        editor.compute(by_hand, record.fact).apply(by_hand)
    cases = evaluate_records(by_hand, records[:2], options=OPTIONS)
    for name in ("ES", "PS", "NS", "ES_gen"):
        mean = sum(case.values[name] for case in cases) / 2
        assert points[2]["measures"][name]["mean"] == pytest.approx(100 * mean)
    assert points[2]["perplexity"] == pytest.approx(perplexity_of(by_hand, TEXTS).value, rel=1e-5)
    assert points[0]["perplexity"] == pytest.approx(perplexity_of(tiny_model(), TEXTS).value)
    whole = load_edit(tmp_path / "a" / "edits" / "ft" / "4.safetensors")
    assert [fact.id for fact in whole.facts] == ["r0", "r1", "r2", "r3"]
    assert points[3]["change"] == pytest.approx(max(whole.norms(tiny_model()).values()))
    table = pd.read_csv(tmp_path / "a" / "curves.csv")
    assert set(table["position"]) == {0, 1, 2, 4}


@pytest.mark.parametrize("stop", [2, 4])
def test_a_stopped_run_goes_on_to_the_same_numbers(stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / "whole")
    out, calls, compute, model = tmp_path / "out", [0], FineTuning.compute, tiny_model()

    def interrupted(self: FineTuning, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == stop:
            raise KeyboardInterrupt
        return compute(self, *args, **kwargs)

    monkeypatch.setattr(FineTuning, "compute", interrupted)
    before = model.weight_hash()
    with pytest.raises(KeyboardInterrupt):
        run(out, model=model)
    assert model.weight_hash() == before
    assert not applied_to(model.hf)
    monkeypatch.setattr(FineTuning, "compute", compute)
    again = run(out, resume=True)
    assert lines(out) == lines_without_times(tmp_path / "whole", out)
    assert json.dumps(again["curves"]) == json.dumps(whole["curves"])
    for change in ({"batch": 2}, {"sample": 2}, {"count": 3}):
        with pytest.raises(ResultsError, match="other settings"):
            run(out, resume=True, **{"count": 4, **change})


def lines_without_times(folder: Path, other: Path) -> Any:
    """The outcomes of one folder with the times of another, which are nobody's business."""
    found, theirs = lines(folder), lines(other)
    for name, rows in found.items():
        for row, one in zip(rows, theirs[name], strict=True):
            row["seconds"] = one["seconds"]
    return found


def test_many_facts_at_once_are_one_edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    compute = FineTuning.compute

    def counted(self: FineTuning, model: Any, facts: Any, **kwargs: Any) -> Any:
        given.append(len(facts))
        return compute(self, model, facts, **kwargs)

    monkeypatch.setattr(FineTuning, "compute", counted)
    findings = run(tmp_path / "a", count=6, batch=3)
    # never across a point at which the model is measured: 1, 2, 5, 6
    assert given == [1, 1, 3, 1]
    assert findings["curves"][-1]["edits"] == 6


def test_edits_that_fail_are_counted(tmp_path: Path) -> None:
    odd = refusing(lambda facts: facts[0].id in {"r0", "r2"})
    findings = run(tmp_path / "a", editors={"odd": odd})
    assert [one["record"] for one in findings["editors"]["odd"]["failed"]] == ["r0", "r2"]
    assert [(point["position"], point["edits"]) for point in findings["curves"]] == [(0, 0), (1, 0), (2, 1), (4, 2)]
    assert not (tmp_path / "a" / "edits" / "odd" / "1.safetensors").exists()
    assert [point["cases"] for point in findings["curves"]] == [3, 1, 2, 3]
    assert any("2 edits could not be computed" in said and "counted and measured all the same" in said
               for said in sequence_remarks(findings))  # fmt: skip


def test_an_edited_model_is_refused(tmp_path: Path) -> None:
    model = tiny_model()
    edit = editors("ft")["ft"].compute(model, tiny_records(1)[0].fact)
    with edit.applied(model), pytest.raises(InputError, match="has edits in it"):
        run(tmp_path / "a", model=model)


def test_collapse_is_named_with_the_number_of_edits() -> None:
    def row(position: int, perplexity: float | None, *, collapsed: bool = False) -> dict[str, Any]:
        return {"position": position, "edits": position, "failed": [], "cases": [], "perplexity": perplexity,
                "collapsed": collapsed, "change": {"w": 0.1}, "seconds": 1.0}  # fmt: skip

    about = {"sample": 9, "batch": 1, "skipped": [], "texts": 2, "records_notes": [], "records_available": 4}
    rows = {
        "ft": [row(0, 10.0), row(1, 19.9), row(2, 20.1), row(5, None, collapsed=True)],
        "rome": [row(0, 10.0), row(1, 10.0), row(2, 10.1), row(5, 12.0)],
    }
    findings = sequence_findings(rows, tiny_records(4), about)
    assert {label: (one["damaged"], one["collapsed"]) for label, one in findings["editors"].items()} == {
        "ft": (2, 5), "rome": (None, None),
    }  # fmt: skip
    first, second = sequence_sentences(findings)
    assert "more than doubled at 2 and the model has collapsed at 5" in first
    assert "collapsed" not in second

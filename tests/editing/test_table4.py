"""The table of editors: whole runs on a tiny model, stopped and gone on with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from engramscope.edit.editors.ft import FineTuning
from engramscope.editing.chosen import chosen_editors
from engramscope.editing.findings import table_findings
from engramscope.editing.inputs import Materials
from engramscope.editing.outcome import Outcome, hooks_on
from engramscope.editing.table4 import run_table4
from engramscope.errors import CheckError, InputError, ResultsError, SiteError
from engramscope.evaluate.case import CaseResult, Row
from engramscope.evaluate.evaluate import EvaluateOptions
from engramscope.evaluate.reference import References
from engramscope.models.model import Model
from tests.editing.tiny import in_records, tiny_model, tiny_records

OPTIONS = EvaluateOptions(length=14)
SETS = ["ft.steps=3", "slow.steps=3", "slow.lr=1e-5"]
TEXTS = ("Anna lost the big red ball", "The child called Bob plays")


def given(count: int = 4) -> Materials:
    references = References.from_texts({record.reference or "": ["the big red kite"] for record in tiny_records(count)})
    return Materials(in_records(count), TEXTS, "two sentences", references)


def editors(*names: str) -> dict[str, Any]:
    chosen = names or ("ft", "slow=ft")
    labels = {name.partition("=")[0] for name in chosen}
    return chosen_editors(chosen, [text for text in SETS if text.partition(".")[0] in labels])


def run(out: Path, model: Model | None = None, count: int | None = None, **over: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"editors": editors(), "materials": given(), "options": OPTIONS, **over}
    found = run_table4(
        model or tiny_model(), values.pop("editors"), values.pop("materials"), out, count=count, **values
    )
    return dict(found.findings)


def lines(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The outcomes without their times."""
    found = {}
    for path in sorted((folder / "outcomes").glob("*.jsonl")):
        rows = [json.loads(line[9:]) for line in path.read_text(encoding="utf-8").splitlines()]
        found[path.name] = [{key: value for key, value in row.items() if not key.endswith("_s")} for row in rows]
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("table") / "whole"
    return folder, run(folder)


def test_every_editor_has_every_record_and_the_files_agree(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, findings = whole
    assert findings["labels"] == ["none", "ft", "slow"]
    found = lines(folder)
    assert list(found) == ["ft.jsonl", "none.jsonl", "slow.jsonl"]
    assert all([row["record"] for row in rows] == ["r0", "r1", "r2", "r3"] for rows in found.values())
    assert findings["measures"] == ["S", "ES", "EM", "PS", "PM", "NS", "NM", "GE", "RS"]
    values = pd.read_parquet(folder / "values.parquet")
    table = pd.read_csv(folder / "table.csv").set_index(["editor", "measure"])
    for (editor, measure), rows in values.groupby(["editor", "measure"]):
        cases = rows.groupby("record")["value"].mean()
        scale = 1 if str(measure).startswith("NKL") else 100
        assert table.loc[(editor, measure), "mean"] == pytest.approx(scale * cases.mean())
        assert table.loc[(editor, measure), "n"] == 4
    assert findings["subjects"] == 2
    assert len(findings["differences"]) == 9  # two editors, nine measures
    saved = json.loads((folder / "table4.json").read_text(encoding="utf-8"))
    assert saved["labels"] == findings["labels"]
    assert len(findings["samples"]) == 4
    assert findings["perplexity"] > 1
    assert findings["editors"]["ft"]["perplexity_ratio"] > 0
    # ft moves more than a hundredth of its rate does
    assert findings["editors"]["ft"]["change"] > 5 * findings["editors"]["slow"]["change"] > 0


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = tiny_model()
    before, hooks = model.weight_hash(), hooks_on(model)
    run(tmp_path / "a", model, count=2)
    assert model.weight_hash() == before
    assert hooks_on(model) == hooks


@pytest.mark.parametrize("stop", [1, 4])
def test_a_stopped_run_goes_on_to_the_same_outcomes(
    stop: int, whole: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, calls, compute = tmp_path / "out", [0], FineTuning.compute

    def interrupted(self: FineTuning, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == stop:
            raise KeyboardInterrupt
        return compute(self, *args, **kwargs)

    monkeypatch.setattr(FineTuning, "compute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(out)
    assert not (out / ".lock").exists()
    monkeypatch.setattr(FineTuning, "compute", compute)
    with pytest.raises(ResultsError, match="not empty"):
        run(out)
    again = run(out, resume=True)
    assert lines(out) == lines(whole[0])
    assert strip(again) == strip(whole[1])
    assert (out / "values.parquet").read_bytes() == (whole[0] / "values.parquet").read_bytes()
    assert (out / "table.csv").read_text() == (whole[0] / "table.csv").read_text()


def test_records_and_editors_can_be_added(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out, count=1, editors=editors("slow=ft"))
    run(out, count=3, editors=editors("slow=ft"), resume=True)
    findings = run(out, resume=True)
    assert {name: sorted(map(str, rows)) for name, rows in lines(out).items()} == {
        name: sorted(map(str, rows)) for name, rows in lines(whole[0]).items()
    }
    assert strip(findings) == strip(whole[1])
    fewer = run(out, count=2, resume=True)
    assert fewer["n"] == 2
    assert all(one["n"] <= 2 for one in fewer["estimates"])


def strip(findings: dict[str, Any]) -> str:
    """Findings without times, as text, because nan is not nan."""
    editors_ = {
        label: {key: value for key, value in facts.items() if not key.endswith("_s")}
        for label, facts in findings["editors"].items()
    }
    return json.dumps({**findings, "editors": editors_}, default=str)


def test_other_settings_are_not_mixed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    run(out, count=1)
    before = lines(out)
    model = tiny_model()
    model.hf.transformer.h[1].mlp.c_proj.weight.data += 1
    changes: list[tuple[dict[str, Any], str]] = [
        ({"seed": 1, "options": OPTIONS}, "seed: 0 -> 1"),
        ({"options": EvaluateOptions(length=15)}, "options.length"),
        ({"model": model}, "model.weights"),
        ({"materials": given(3)}, "records.sha256"),
        ({"editors": chosen_editors(["ft"], ["ft.steps=4"])}, "ft.steps: 3 -> 4"),
    ]
    for change, said in changes:
        with pytest.raises(ResultsError, match="other settings") as caught:
            run(out, resume=True, count=1, **change)
        assert any(said in fault for fault in caught.value.faults), caught.value.faults
    monkeypatch.setattr("engramscope.editing.table4.versions", lambda: {"engramscope": "99.0"})
    with pytest.raises(ResultsError) as caught:
        run(out, resume=True, count=1)
    assert any("engramscope: " in fault and "99.0" in fault for fault in caught.value.faults)
    assert lines(out) == before


class Refusing(FineTuning):
    """Refuses what a function says."""

    refuses: Callable[[Any], bool] = staticmethod(lambda _: True)

    def compute(self, model: Any, facts: Any, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.refuses(facts):
            raise InputError(f"Not {getattr(facts, 'id', 'these')}.")
        return super().compute(model, facts, **kwargs)


def refusing(which: Callable[[Any], bool]) -> Refusing:
    editor = Refusing("ft", FineTuning.Options.model_validate({"steps": 2}))
    editor.refuses = which  # pyright: ignore[reportAttributeAccessIssue]
    return editor


def test_an_edit_that_fails_is_counted_and_left_out(tmp_path: Path) -> None:
    findings = run(tmp_path / "a", editors={**editors("ft"), "odd": refusing(lambda fact: fact.id in {"r0", "r2"})})
    assert findings["editors"]["odd"]["failed"] == [
        {"record": "r0", "why": "Not r0."}, {"record": "r2", "why": "Not r2."},
    ]  # fmt: skip
    assert {one["n"] for one in findings["estimates"] if one["editor"] == "odd"} == {2}
    assert {(one["n"], one["left_out"]) for one in findings["differences"]} == {(2, 2)}
    assert "odd" in findings["labels"]
    page = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    assert "2 of 4 edits could not be computed" in page


def test_a_record_that_cannot_be_asked_does_not_stop_the_table(tmp_path: Path) -> None:
    records = list(tiny_records(4))
    records[1] = replace(records[1], paraphrases=("Anna lost the big red ball " * 20 + "and",))
    materials = replace(given(), records=replace(in_records(4), records=tuple(records)))
    findings = run(tmp_path / "a", editors=editors("ft"), materials=materials)
    assert [one["record"] for one in findings["editors"]["ft"]["failed"]] == ["r1"]
    assert {one["n"] for one in findings["estimates"]} == {3}
    assert findings["knowledge"]["known"] + findings["knowledge"]["unknown"] == 3
    page = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    assert "1 of 4 records cannot be asked and are in no mean" in page
    assert "edits could not be computed" not in page
    with pytest.raises(InputError, match="No record can be asked"):
        run(tmp_path / "b", materials=replace(given(), records=replace(in_records(4), records=(records[1],))))
    # an editor that comes later finds the same
    again = run(tmp_path / "a", editors=editors(), materials=materials, resume=True)
    assert [one["record"] for one in again["editors"]["slow"]["failed"]] == ["r1"]
    assert {(one["n"], one["left_out"]) for one in again["differences"]} == {(3, 0)}


def test_an_editor_that_edits_nothing_is_given_up(tmp_path: Path) -> None:
    findings = run(tmp_path / "a", editors={**editors("ft"), "never": refusing(lambda _: True)})
    assert findings["skipped"] == [{"label": "never", "editor": "ft", "why": "Not r2."}]
    assert findings["labels"] == ["none", "ft"]
    assert lines(tmp_path / "a").get("never.jsonl", []) == []


def test_settings_that_do_not_go_with_the_model_stop_the_table(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="no layer 9"):
        run(tmp_path / "a", editors=chosen_editors(["ft"], ["ft.layer=9"]))


def test_networks_that_are_not_trained_are_left_out_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    findings = run(tmp_path / "a", count=1, editors={**editors("ft"), **chosen_editors(["ke-cf", "mend"])})
    assert [one["label"] for one in findings["skipped"]] == ["ke-cf", "mend"]
    assert all("engramscope train-editor" in one["why"] for one in findings["skipped"])
    with pytest.raises(InputError, match="No editor is left"):
        run(tmp_path / "b", count=1, editors=chosen_editors(["ke"]))
    assert not (tmp_path / "b").exists()


def test_an_edited_model_is_refused(tmp_path: Path) -> None:
    model = tiny_model()
    edit = editors("ft")["ft"].compute(model, tiny_records(1)[0].fact)
    with edit.applied(model), pytest.raises(InputError, match="has edits in it"):
        run(tmp_path / "a", model)


def test_a_model_that_was_changed_meanwhile_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, compute = tiny_model(), FineTuning.compute

    def meddling(self: FineTuning, *args: Any, **kwargs: Any) -> Any:
        model.hf.transformer.wte.weight.data[0, 0] += 1e-3
        return compute(self, *args, **kwargs)

    monkeypatch.setattr(FineTuning, "compute", meddling)
    with pytest.raises(CheckError, match="not what it was"):
        run(tmp_path / "a", model, count=1)


def case(record: str, **values: float) -> CaseResult:
    return CaseResult(record, tuple(Row(record, name, 0, value) for name, value in values.items()), known=True)


def health(after: float | None, change: float = 0.1, alignments: tuple[float, ...] = ()) -> dict[str, Any]:
    return {"norms": {"w": change}, "alignments": list(alignments), "warnings": [], "perplexity_before": 10.0,
            "perplexity_after": after}  # fmt: skip


def test_damage_is_counted_by_what_it_is() -> None:
    records = tiny_records(4)
    outcomes = [
        Outcome("r0", case=case("r0", ES=1.0), health=health(11.0, 0.2), edit_s=1.0),
        Outcome("r1", case=case("r1", ES=1.0), health=health(25.0, 3.0, (0.01,)), edit_s=3.0),
        Outcome("r2", case=case("r2", ES=0.0), health=health(None), edit_s=2.0),
        Outcome("r3", "failed: too long"),
    ]
    about = {"model": {"name": "tiny"}, "protocol": {"records": {"file_sha256": None}}}
    facts = table_findings({"x": outcomes}, records, about)["editors"]["x"]
    assert (facts["edits"], facts["collapsed"], facts["damaged"]) == (3, ["r2"], ["r1"])
    assert (facts["large"], facts["misaligned"], facts["edit_s"]) == (1, 1, 2.0)
    assert facts["perplexity_ratio"] == pytest.approx(1.8)
    assert facts["worst_perplexity_ratio"] == 2.5


def test_published_figures_stand_beside_ours_for_their_model_only() -> None:
    def found(model: str, sha256: str | None) -> Any:
        about = {"model": {"name": model}, "protocol": {"records": {"file_sha256": sha256}}}
        return table_findings({"none": [Outcome("r0", case=case("r0", ES=1.0))]}, tiny_records(1), about)["published"]

    theirs = "d017056125178a13728594e66a801357a8db9ed7973a7425554bb4271de9fc6f"
    xl = found("openai-community/gpt2-xl", theirs)
    assert (xl["title"], xl["n"], xl["same_records"]) == ("GPT-2 XL", 7500, True)
    assert xl["editors"]["rome"]["S"] == {"value": 89.2, "half_width": None}
    assert xl["editors"]["ke_cf"]["GE"] == {"value": 383.0, "half_width": 4.1}
    assert found("openai-community/gpt2-xl", "0")["same_records"] is False
    assert found("mini", theirs) is None

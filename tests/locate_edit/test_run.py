"""Whole runs: what lies in the folder, going on after a kill, refusals, and the command."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from engramscope.cli import _run_app
from engramscope.edit.editors.ft import FineTuning
from engramscope.errors import InputError, ResultsError
from engramscope.locate_edit import LocateEdit, run, run_locate_edit
from engramscope.locate_edit.edits import EDITS, bench_of, cases_of, edit_all
from engramscope.locate_edit.outcomes import probabilities
from engramscope.models import Model
from engramscope.records import write_records
from engramscope.study import StudyResult
from tests.locate_edit.conftest import SETTINGS


@pytest.fixture
def traced(finished: LocateEdit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tracing of the finished comparison, which is the same, without its seconds."""
    studies = {name: StudyResult(finished.folder / "tracing" / name) for name in ("gaussian", "str")}
    monkeypatch.setattr(run, "trace", lambda *_args, **_more: studies)


def test_what_lies_in_the_folder(finished: LocateEdit, mini: Model) -> None:
    edits, found = finished.edits(), finished.found
    assert list(edits.columns) == EDITS.names
    assert len(edits) == 5 * 3 * 3  # facts, layers, outcomes
    assert found["edits"] == 15
    assert not found["failed"]
    assert edits["value"].between(0, 1).all()
    assert set(edits["layer"]) == {0, 3, 5}
    manifest = json.loads((finished.folder / "manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["model"]["weight_hash"] == mini.weight_hash()
    assert manifest["identity"]["editors"]["ft"]["steps"] == 6
    assert len(manifest["identity"]["facts"]) == 5
    assert not list(finished.folder.glob(".lock"))
    for name in ("gaussian", "str"):
        assert (finished.folder / "tracing" / name / "report.html").is_file()


def test_a_value_of_the_table_is_that_of_an_edit_made_by_hand(finished: LocateEdit, mini: Model, records: Any) -> None:
    edits = finished.edits()
    row = edits[(edits["layer"] == 3) & (edits["outcome"] == "rewrite")].iloc[2]
    record = next(one for one in records if one.id == row["fact"])
    edit = bench_of(SETTINGS, [0, 3, 5]).editor("ft", 3).compute(mini, record.fact, seed=SETTINGS.seed)
    ask = cases_of(mini, [record])[0].probes.asks[:1]
    before = probabilities(mini, ask)[0]
    with edit.applied(mini):
        after = probabilities(mini, ask)[0]
    assert (row["before"], row["after"]) == pytest.approx((before, after), abs=1e-6)
    assert row["value"] == pytest.approx(max(0.0, 1 - (1 - after) / (1 - before)), abs=1e-6)
    assert after > before


def test_the_model_is_left_as_it_was(finished: LocateEdit, mini: Model) -> None:
    manifest = json.loads((finished.folder / "manifest.json").read_text())
    assert mini.weight_hash() == manifest["model"]["weight_hash"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in mini.hf.modules())
    assert not any(parameter.grad is not None for parameter in mini.hf.parameters())


@pytest.mark.usefixtures("traced")
def test_a_killed_run_goes_on_fact_by_fact_and_ends_the_same(
    finished: LocateEdit, mini: Model, records: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = FineTuning.compute, []

    def counted(self: Any, *args: Any, **more: Any) -> Any:
        if len(made) == 7:
            raise KeyboardInterrupt
        made.append(args[1].id)
        return real(self, *args, **more)

    monkeypatch.setattr(FineTuning, "compute", counted)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_locate_edit(records, mini, out, SETTINGS)
    assert json.loads((out / "manifest.json").read_text())["status"] == "running"
    assert not (out / "locate_edit.json").exists()
    # what was being written when it was killed is no table: it is made anew
    (out / ".parts" / "ft-0003.parquet").write_bytes(b"PAR1 half a table")
    made[:] = [""] * -100
    monkeypatch.setattr(FineTuning, "compute", real)
    again: list[str] = []
    monkeypatch.setattr(
        FineTuning, "compute", lambda self, *args, **more: (again.append(args[1].id), real(self, *args, **more))[1]
    )
    resumed = run_locate_edit(records, mini, out, SETTINGS, resume=True)
    assert len(again) == 10  # the five of the first layer are kept, the damaged file is not
    columns = ["fact", "editor", "layer", "outcome"]
    one, other = (frame.sort_values(columns).reset_index(drop=True) for frame in (resumed.edits(), finished.edits()))
    pd.testing.assert_frame_equal(one, other)
    assert resumed.found == finished.found


@pytest.mark.usefixtures("traced")
def test_going_on_with_other_settings_is_refused(mini: Model, records: Any, finished: LocateEdit) -> None:
    other = SETTINGS.model_copy(update={"options": {"ft": {"steps": 7}}})
    with pytest.raises(ResultsError, match=r"(?s)belongs to another comparison.*editors\.ft\.steps: 6 -> 7"):
        run_locate_edit(records, mini, finished.folder, other, resume=True)
    with pytest.raises(ResultsError, match="is not empty"):
        run_locate_edit(records, mini, finished.folder, SETTINGS)


def test_a_folder_of_something_else_is_refused(mini: Model, records: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ResultsError, match="is not empty"):
        run_locate_edit(records, mini, tmp_path, SETTINGS)
    with pytest.raises(ResultsError, match=r"notes\.txt, but no comparison"):
        run_locate_edit(records, mini, tmp_path, SETTINGS, resume=True)
    assert [item.name for item in tmp_path.iterdir() if not item.name.startswith(".")] == ["notes.txt"]


def test_an_edit_that_fails_is_a_row_and_one_that_always_fails_an_error(
    mini: Model, records: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FineTuning.compute
    cases = cases_of(mini, records[:3])
    bad = {cases[1].record.id}

    def sometimes(self: Any, model: Model, fact: Any, **more: Any) -> Any:
        if fact.id in bad:
            raise InputError("this one cannot be edited")
        return real(self, model, fact, **more)

    monkeypatch.setattr(FineTuning, "compute", sometimes)
    bench = bench_of(SETTINGS, [0, 5])
    rows = edit_all(mini, cases, bench, tmp_path).to_pandas()
    failed = rows[rows["status"] != "ok"]
    assert set(failed["fact"]) == bad
    assert set(failed["status"]) == {"failed: this one cannot be edited"}
    assert failed["value"].isna().all()
    assert len(rows) == 3 * 2 * 3
    bad |= {case.record.id for case in cases}
    (tmp_path / "new").mkdir()
    with pytest.raises(InputError, match="cannot be edited"):
        edit_all(mini, cases, bench, tmp_path / "new")


@pytest.mark.parametrize(("method", "option"), [("memit", "layers"), ("rome", "layer"), ("random_site", "layer")])
def test_editors_of_one_layer_and_of_several_edit_the_layer_asked_for(method: str, option: str, mini: Model) -> None:
    bench = bench_of(SETTINGS.model_copy(update={"methods": (method,), "options": {}}), [1, 4])
    value = getattr(bench.editor(method, 4).options, option)
    assert value == 4 or tuple(value) == (4,)
    settled = bench.settled(mini)[method]
    assert option not in settled
    # what is kept is what is used on this model, not what its options say for any
    assert (settled["token"], settled["steps"]) == ("last", 60)


def test_what_each_layer_has_of_its_own_is_kept_as_given(mini: Model) -> None:
    bench = bench_of(SETTINGS.model_copy(update={"methods": ("ft_l",), "options": {}}), [1, 4])
    assert bench.editor("ft_l", 1).settled(mini) != bench.editor("ft_l", 4).settled(mini)
    settled = bench.settled(mini)["ft_l"]
    assert settled["radius"] is None
    assert settled["lr"] == 0.0013


def test_every_seed_makes_an_edit_of_its_own(
    mini: Model, records: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seeds = FineTuning.compute, []
    monkeypatch.setattr(
        FineTuning, "compute", lambda self, *args, **more: (seeds.append(more["seed"]), real(self, *args, **more))[1]
    )
    bench = bench_of(SETTINGS.model_copy(update={"edit_seeds": 2}), [4])
    rows = edit_all(mini, cases_of(mini, records[:2]), bench, tmp_path).to_pandas()
    assert seeds == [3, 4, 3, 4]
    assert list(rows["seed"]) == [3] * 3 + [4] * 3 + [3] * 3 + [4] * 3


def test_the_page_escapes_and_fetches_nothing(finished: LocateEdit, mini: Model, records: Any, tmp_path: Path) -> None:
    text = finished.page.read_text(encoding="utf-8")
    assert "default-src &#39;none&#39;" in text
    assert "<script" not in text
    assert not re.search(r'(src|href)="https?:', text)
    from engramscope.locate_edit.page import write_page

    found = json.loads(json.dumps(finished.found))
    found["model"]["name"] = "<b onload=x>&"
    found["failed"] = [{"editor": "ft", "status": "failed: <i>", "edits": 1}]
    chosen = tuple(sorted(set(finished.edits()["fact"])))
    tables = run.Tables(finished.tracing(), finished.edits(), chosen, ("r",) * len(chosen), (0, 3, 5), 6)
    page = write_page(tmp_path, tables, found).read_text(encoding="utf-8")
    assert "<b onload" not in page
    assert "failed: <i>" not in page
    assert "&lt;b onload=x&gt;&amp;" in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--methods", "roem"], "unknown editor 'roem'.*rome"),
        (["--layers", "0,9"], "no layer 9: mini has 6 layers"),
        (["--layers", "2"], "One layer leaves nothing to compare"),
        (["--layers", "one"], "layers"),
        (["--methods", "ft", "--option", "ft.stesp=3"], "stesp"),
        (["--methods", "ft", "--option", "steps=3"], r"expected method\.option=value"),
        (["--methods", "ft", "--option", "rome.steps=3"], "'rome', which is not among the methods"),
        (["--methods", "ft", "--option", "ft.layer=3"], "every layer is edited"),
        (["--methods", "ft,kn"], "'kn' does not let the layer be chosen"),
        (["--corruptions", "gauss"], "corruptions"),
        (["--site", "mlp"], "sites"),
        (["--records", "nowhere.json"], "nowhere.json"),
    ],
)
def test_bad_input_is_a_sentence_and_writes_nothing(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert _run_app(["locate-edit", *arguments, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert re.search(said, error), error
    assert "Traceback" not in error
    assert not out.exists()


def test_facts_without_a_target_are_given_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = [
        {"known_id": n, "prompt": f"{name} was born in", "subject": name, "attribute": city, "relation_id": "P19"}
        for n, (name, city) in enumerate([("Edgar Allan Poe", "Boston"), ("Marie Curie", "Warsaw")])
    ]
    (tmp_path / "known_1000.json").write_text(json.dumps(facts), encoding="utf-8")
    given = ["--records", str(tmp_path / "known_1000.json"), "--out", str(tmp_path / "out")]
    assert _run_app(["locate-edit", *given]) == 2
    # not that they cannot be edited
    assert "2: the model does not state it" in capsys.readouterr().err


@pytest.mark.usefixtures("traced")
def test_the_command_prints_the_answer(
    finished: LocateEdit, records: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "records.jsonl"
    write_records(file, records)
    given = ["--records", str(file), "-n", "5", "--methods", "ft", "--layers", "0,3,5", "--option", "ft.steps=6",
             "--window", "1", "--draws", "2", "--resamples", "100", "--seed", "3"]  # fmt: skip
    assert _run_app(["locate-edit", *given, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    for sentence in finished.sentences():
        assert sentence in said
    assert str(tmp_path / "out" / "locate_edit.html") in said

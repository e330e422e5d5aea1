"""`reproduce` from end to end on the bundled model, with few pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engramscope.bundled.world import load_world
from engramscope.cli import _run_app
from engramscope.errors import InputError, PairsError, ResultsError, StudyError
from engramscope.models import Model
from engramscope.replications import (
    Replication,
    Reproduction,
    _run,
    parse_replication,
    read_replication,
    reproduce,
)
from engramscope.replications._file import merged
from engramscope.replications._page import write_page
from engramscope.replications._record import tally_sentence, verdict_sentence
from engramscope.replications._verdict import DIFFERS, NOT_MEASURED, REPRODUCED, UNPUBLISHED
from engramscope.results.read import read_manifest
from tests.replications.test_files import NAMES, raw

Values = dict[str, dict[str, Any]]


def small(name: str, limit: int = 2, **over: Any) -> Replication:
    """A replication with still fewer pairs than --quick takes."""
    quick = {"limit": limit, "draws": 2, "resamples": 100, "check": 1}
    return parse_replication(merged(raw(name), {"quick": quick, **over}), name)


def run(name: str, out: Path, model: Model | str, limit: int = 2, **options: Any) -> Reproduction:
    return reproduce(small(name, limit), out, model=model, quick=True, **options)


def values(found: Reproduction) -> Values:
    stored = json.loads((found.folder / "replication.json").read_text(encoding="utf-8"))
    assert found.page.is_file()
    return {row["name"]: row for row in stored["values"]}


def outcomes(found: Reproduction) -> set[str]:
    return {row["verdict"] for row in values(found).values()}


def test_table_5_on_another_model_is_measured_and_not_compared(mini: Model, tmp_path: Path) -> None:
    found = run("zn_table5", tmp_path / "out", mini)
    said = values(found)
    assert said["STR, logit difference"]["verdict"] == UNPUBLISHED
    assert said["STR, logit difference"]["measured"]["positive"]
    assert said["10.7, STR, normalised LD"]["verdict"] == NOT_MEASURED
    assert "no head 10.7" in said["10.7, STR, normalised LD"]["why"]
    assert 0.9 < said["P(IO), clean"]["measured"] <= 1
    assert found.record["verdict"]["outcome"] == UNPUBLISHED
    assert any("Quick" in line for line in found.record["remarks"])
    assert read_manifest(tmp_path / "out" / "str")["status"] == "complete"
    assert (tmp_path / "out" / "gn" / "report.html").is_file()
    assert 'corrupt = "s2"' in (tmp_path / "out" / "gn" / "study.toml").read_text(encoding="utf-8")


def test_figure_3_says_which_heads_are_not_there_and_measures_those_that_are(mini: Model, tmp_path: Path) -> None:
    found = run("zn_fig3", tmp_path / "none", mini)
    assert outcomes(found) == {NOT_MEASURED}
    assert "there is no head" in values(found)["attention to IO, clean"]["why"]
    views = {
        name: {"heads": ["4.3", "4.2"], "restore": {"site": "v", "heads": ["2.0", "3.1"]}}
        for name in ("look_str", "look_gn", "joint_str", "joint_gn")
    }
    other = reproduce(small("zn_fig3", view=views), tmp_path / "own", model=mini, quick=True)
    said = values(other)
    assert outcomes(other) == {UNPUBLISHED}
    clean = [said[f"attention to {target}, clean"]["measured"] for target in ("IO", "S1", "S2", "others")]
    assert sum(clean) == pytest.approx(1, abs=1e-4)
    assert -1 < said["normalised LD, STR, values restored"]["measured"] < 2


def test_the_published_model_under_another_name_is_compared(twelve_by_twelve: Path, tmp_path: Path) -> None:
    found = run("zn_fig3", tmp_path / "out", str(twelve_by_twelve), as_published=True)
    assert outcomes(found) <= {REPRODUCED, DIFFERS}
    # random weights attend evenly: a dozen tokens or so, of which IO is one
    said = values(found)
    assert said["attention to IO, clean"]["verdict"] == DIFFERS
    assert said["attention to S2, clean"]["verdict"] in {REPRODUCED, DIFFERS}
    assert found.record["verdict"]["outcome"] == DIFFERS
    assert "not reproduced" in verdict_sentence(found.record)


def test_greater_than(mini: Model, tmp_path: Path) -> None:
    said = values(run("zn_table3", tmp_path / "out", mini))
    assert said["GN, sum of logit differences"]["measured"] == 0  # heads of layers that mini does not have
    assert said["largest head, STR, sum of logit differences"]["shown"].startswith("head ")


def test_docstring_takes_another_model_where_the_published_one_cannot_be_loaded(tmp_path: Path) -> None:
    narrow = {"study": {"sweep": [{"name": "heads", "site": "z", "heads": [0, 3], "positions": "each"}]}}
    found = reproduce(small("zn_table2", **narrow), tmp_path / "out", quick=True)
    assert found.record["model"]["name"] == "mini"
    assert any("attn-only-4l" in line for line in found.record["remarks"])
    last = values(found)["STR, logit difference, last"]
    assert last["verdict"] == UNPUBLISHED
    assert all(
        head.split(".")[1] in {"0", "3"} for head in (*last["measured"]["positive"], *last["measured"]["negative"])
    )


def test_windows_of_figure_5_are_cut_to_the_model(mini: Model, tmp_path: Path) -> None:
    found = run("zn_fig5", tmp_path / "out", mini)
    assert any("cut to the model's 6" in line for line in found.record["remarks"])
    assert any("bundled encyclopaedia" in line for line in found.record["remarks"])
    said = values(found)["windows of 3: height"]
    assert 1 <= said["detail"]["layer"] <= 3  # the middle, in proportion
    assert read_manifest(tmp_path / "out" / "gn")["study"]["sweep"][3]["window"] == 6


def known_1000(path: Path, count: int = 6) -> Path:
    """Facts of the bundled encyclopaedia in the format of known_1000.json, and one of several tokens."""
    facts = [fact for fact in load_world().facts if fact.templates[fact.held_out].startswith("{s}")][:count]
    entries = [
        {"known_id": number, "subject": fact.subject, "attribute": fact.answer, "template": "{}",
         "prompt": fact.prompt(fact.held_out), "prediction": "", "relation_id": fact.relation}
        for number, fact in enumerate(facts)
    ]  # fmt: skip
    entries.append({**entries[0], "known_id": 99, "attribute": "an answer of many tokens"})
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


def test_figure_3_of_meng_on_facts_from_a_file(mini: Model, tmp_path: Path) -> None:
    facts = known_1000(tmp_path / "facts.json")
    found = run("meng_fig3", tmp_path / "out", mini, limit=3, facts=[facts])
    said = values(found)
    assert outcomes(found) == {UNPUBLISHED}
    assert said["MLPs severed"]["measured"] is not None
    assert any("Of 7 facts 6 have an answer of one token" in line for line in found.record["remarks"])
    assert found.record["facts"] == ["facts.json"]
    assert len((tmp_path / "out" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()) == 6
    # the study can be run again from its own folder
    assert _run_app(["check", str(tmp_path / "out" / "noise" / "study.toml"), "--quiet"]) == 0


def test_clap_differs_by_its_own_numbers_on_every_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run_app(["reproduce", "clap_tables", "--quick", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "not reproduced: 2 of the 3 values that decide differ" in " ".join(printed.split())
    stored = json.loads((tmp_path / "out" / "replication.json").read_text(encoding="utf-8"))
    assert [row["verdict"] for row in stored["values"][:3]] == [DIFFERS, REPRODUCED, DIFFERS]
    output = next(row for row in stored["values"] if row["name"] == "final output layer")
    assert output["measured"] == pytest.approx(1)
    assert output["detail"]["cut"] is True
    assert tally_sentence(stored).startswith("7 values: 1 reproduced, 2 differs")
    # a second time into the same folder, and under another name
    assert _run_app(["reproduce", "clap_tables", "--quick", "--out", str(tmp_path / "out")]) == 2
    assert "--resume" in capsys.readouterr().err
    assert _run_app(["reproduce", "zn_table1", "--resume", "--model", "mini", "--out", str(tmp_path / "out")]) == 2
    assert "clap_tables" in capsys.readouterr().err
    before = (tmp_path / "out" / "answer" / "effects.parquet").stat().st_mtime_ns
    (tmp_path / "out" / "replication.json").unlink()
    arguments = ["reproduce", "clap_tables", "--quick", "--resume", "--quiet", "--out", str(tmp_path / "out")]
    assert _run_app(arguments) == 0
    assert (tmp_path / "out" / "answer" / "effects.parquet").stat().st_mtime_ns == before
    again = json.loads((tmp_path / "out" / "replication.json").read_text(encoding="utf-8"))
    assert again["values"] == stored["values"]
    # the same folder does not take a study of another size
    arguments.remove("--quick")
    assert _run_app(arguments) == 2
    assert "limit" in capsys.readouterr().err


def test_arms_with_one_study_are_run_once(mini: Model, tmp_path: Path) -> None:
    base = raw("zn_section42")
    base["arm"]["twin"] = dict(base["arm"]["str"])
    base["value"].append({"name": "twin", "where": "here", "measure": "baseline", "arm": "twin", "metric": "prob",
                          "run": "clean", "counts": False})  # fmt: skip
    base["quick"] = {"limit": 2, "draws": 1, "check": 0}
    found = reproduce(parse_replication(base, "zn_section42"), tmp_path / "out", model=mini, quick=True)
    said = values(found)
    assert found.record["arms"]["twin"]["folder"] == found.record["arms"]["str"]["folder"] == "str"
    assert said["twin"]["measured"] == said["P(IO), clean"]["measured"]
    assert not (tmp_path / "out" / "twin").exists()


def test_what_a_model_cannot_be_asked_is_not_measured(tmp_path: Path, twelve_by_twelve: Path) -> None:
    # a random model knows no sum, and some have to be known
    few = {name: {"pairs": {"limit": 3}} for name in raw("zn_fig6_8")["arm"]}
    with pytest.raises(InputError, match="knows the answer of"):
        reproduce(small("zn_fig6_8", arm=few), tmp_path / "out", model=str(twelve_by_twelve))
    assert not (tmp_path / "out" / "replication.json").exists()


def test_an_arm_that_does_not_suit_another_model_leaves_its_values_out(
    mini: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = _run.run_study

    def refusing(inputs: Any, out: Path, **options: Any) -> Any:
        if out.name == "gn":
            raise PairsError("Prompts of this kind are unknown here.")
        return original(inputs, out, **options)

    monkeypatch.setattr(_run, "run_study", refusing)
    found = run("zn_section42", tmp_path / "out", mini)
    said = values(found)
    assert said["P(IO), GN"]["verdict"] == NOT_MEASURED
    assert said["P(IO), GN"]["why"] == "prompts of this kind are unknown here"
    assert said["P(IO), STR"]["verdict"] == UNPUBLISHED
    assert list(found.record["arms"]) == ["str"]
    with pytest.raises(PairsError):  # on the published model that is a fault
        run("zn_section42", tmp_path / "other", mini, as_published=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["zn_tabel5"], "did you mean 'zn_table5'"),
        (["zn_fig5"], "give them with --facts"),
        (["zn_fig5", "--facts", "nowhere.json", "--model", "mini"], "no file"),
        (["zn_table5", "--facts", __file__, "--model", "mini"], "asks for no facts"),
        (["zn_table5", "--as-published"], "name one"),
        (["zn_table5", "--model", "no-such-model-anywhere"], "no-such-model-anywhere"),
        ([], "NAME"),
    ],
)
def test_bad_input_is_answered_with_a_sentence_and_code_2(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert _run_app(["reproduce", *arguments, "--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "out").exists()


def test_the_list_names_everything_and_what_there_is_nothing_to_measure_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run_app(["reproduce", "--list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in NAMES)
    assert "Figure 25" in shown
    assert "a schematic" in shown


def test_interrupting_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def stop(*_: object, **__: object) -> None:
        (out / "an arm").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr("engramscope.replications._run.run_study", stop)
    assert _run_app(["reproduce", "clap_tables", "--quick", "--out", str(out)]) == 130
    assert f"--resume goes on in {out}." in capsys.readouterr().err


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path, mini: Model) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ResultsError, match="is a file"):
        run("zn_table5", tmp_path / "out", mini)
    with pytest.raises(StudyError, match="name one"):
        reproduce("zn_table5", tmp_path / "other", as_published=True)


def test_text_from_data_is_escaped_on_the_page(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    row = {"name": evil, "measure": "baseline", "where": evil, "tag": "text", "tag_words": evil, "counts": True,
           "published": evil, "measured": 1, "shown": evil, "detail": {}, "verdict": DIFFERS, "why": evil,
           "exact": None}  # fmt: skip
    arm = {"folder": 'a"><b>', "corruption": {"method": evil}, "counts": {"pairs": 1, "cells": 1}, "known": None,
           "warnings": [evil]}  # fmt: skip
    record = {
        "name": evil, "quick": True, "what": evil, "source": evil, "items": [evil], "published_model": evil,
        "model": {"name": evil}, "started": "2026-01-01T00:00:00", "remarks": [evil], "deviations": [evil],
        "notes": [evil],
        "values": [row], "arms": {evil: arm}, "verdict": {"outcome": DIFFERS, "why": evil, "rule": evil, "tally": {}},
    }  # fmt: skip
    text = write_page(tmp_path / "page.html", record).read_text(encoding="utf-8")
    assert "<script" not in text
    assert 'a"><b>' not in text
    assert text.count("&lt;script&gt;") > 10


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_replication_runs_on_the_bundled_model(name: str, mini: Model, tmp_path: Path) -> None:
    found = reproduce(read_replication(name), tmp_path / "out", model=mini, quick=True)
    assert outcomes(found) <= {UNPUBLISHED, NOT_MEASURED, REPRODUCED, DIFFERS}
    # the heads of Figure 3 are GPT-2's; subjects of the bundled facts have no middle tokens
    if name not in {"zn_fig3", "zn_fig15_19"}:
        assert any(row["measured"] is not None for row in values(found).values())

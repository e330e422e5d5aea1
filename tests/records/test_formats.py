"""Readers of record files: values, every fault with its place, what is unusable, and the public files counted."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from engramscope.errors import InputError, UnknownNameError
from engramscope.records import Fact, Probe, Record, read_records, with_drawn_targets, write_records
from engramscope.records.formats import FORMATS, format_names
from engramscope.records.formats._base import RecordReader
from tests.pairs.tiny_tokenizers import shared
from tests.records.small import counterfact, easyedit, fact_line, full_record, known, written, zsre

FILES = {
    "counterfact": [counterfact(), counterfact(4)],
    "easyedit": [easyedit(), easyedit(11)],
    "known_1000": [known(4, "Ada Lake", "Canada"), known(5, "Bo Lake", "Peru")],
    "zsre": [zsre(), zsre()],
    "jsonl": [fact_line(), fact_line()],
}


def file_of(name: str, tmp_path: Path, rows: Any = None) -> Path:
    return written(tmp_path, FILES[name] if rows is None else rows, "x.jsonl" if name == "jsonl" else "x.json")


def faults_of(path: Path, **options: Any) -> tuple[str, ...]:
    with pytest.raises(InputError) as error:
        read_records(path, **options)
    return error.value.faults


# --- every format -----------------------------------------------------------------------------------------------------


def test_every_format_is_tried_here() -> None:
    assert set(format_names()) == set(FILES)
    for name in format_names():
        assert issubclass(FORMATS.get(name), RecordReader)
        assert FORMATS.describe(name)


@pytest.mark.parametrize("name", FILES)
def test_told_from_its_content_and_hashed(name: str, tmp_path: Path) -> None:
    path = file_of(name, tmp_path)
    records = read_records(path)
    assert (records.format, records.name, len(records)) == (name, path.name, 2)
    assert records.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert records.notes == FORMATS.get(name).notes
    assert records.unusable == ()
    assert {record.source for record in records} == {f"{path.name} ({name})"}
    assert read_records(path, name) == records


@pytest.mark.parametrize("name", FILES)
def test_every_record_needs_every_field_and_the_message_says_where(name: str, tmp_path: Path) -> None:
    optional = {"pararel_idx", "template", "prediction", "pred", "alt", "cond", "true"}
    good = FILES[name][0]
    for key in set(good) - optional:
        broken = {other: value for other, value in good.items() if other != key}
        faults = faults_of(file_of(name, tmp_path, [good, broken]), format=name)
        place = "line 2" if name == "jsonl" else "record 1"
        assert len(faults) == 1
        assert faults[0].startswith(f"x.json{'l' if name == 'jsonl' else ''}, {place}"), faults
        assert f"{key!r} is missing" in faults[0], faults
        if key not in ("case_id", "known_id") and name not in ("zsre", "jsonl"):
            assert str(good.get("case_id", good.get("known_id"))) in faults[0].split(":")[0], faults
    for key in optional & set(good):
        assert len(read_records(file_of(name, tmp_path, [{o: v for o, v in good.items() if o != key}]), name)) == 1


@pytest.mark.parametrize("name", FILES)
def test_a_text_of_another_kind_is_a_fault(name: str, tmp_path: Path) -> None:
    key = "subject" if name != "counterfact" else "paraphrase_prompts"
    for wrong in (None, 3, {"a": 1}):
        fault = faults_of(file_of(name, tmp_path, [FILES[name][0] | {key: wrong}]), format=name)[0]
        assert repr(key) in fault
        assert "must be a" in fault


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "[3]", '"text"', "[{", b"\xff\xfe[", '[{"case_id": 1}]', "null", "[" * 100_000]
)
def test_broken_files_give_sentences(content: object, tmp_path: Path) -> None:
    path = written(tmp_path, content)
    for name in (None, "counterfact", "easyedit", "known_1000", "zsre", "jsonl"):
        for fault in faults_of(path, format=name):
            assert fault.endswith(".")
            assert "pair" not in fault


def test_missing_file_and_unknown_format(tmp_path: Path) -> None:
    assert "There is no record file" in faults_of(tmp_path / "none.json")[0]
    with pytest.raises(UnknownNameError, match="did you mean 'counterfact'"):
        read_records(file_of("zsre", tmp_path), "counterfct")


def test_importing_and_reading_needs_no_torch(tmp_path: Path) -> None:
    path = file_of("counterfact", tmp_path)
    program = (
        "import sys, engramscope.records as r, engramscope.records.bundled, engramscope.records.download\n"
        f"r.read_records({str(path)!r}); engramscope.records.bundled.bundled_records()\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# --- values -----------------------------------------------------------------------------------------------------------


def test_counterfact_values(tmp_path: Path) -> None:
    record = read_records(file_of("counterfact", tmp_path))[0]
    assert record == Record(
        "case-3", Fact("The mother tongue of Ada {Lovely} is", "Ada {Lovely}", "English", "French", "case-3"), "P103",
        ("Rain fell. Ada {Lovely} spoke", "Ada {Lovely}, a native"),
        (Probe("Bo spoke", "French", "English"), Probe("Cy spoke", "French", "English")),
        (Probe("Di spoke", "French", "English"),), ("Ada {Lovely} was born in",), "P103|Q1860", "x.json (counterfact)",
    )  # fmt: skip


def test_counterfact_without_ids_of_objects_names_its_references_by_text(tmp_path: Path) -> None:
    entry = counterfact()
    del entry["requested_rewrite"]["target_new"]["id"]
    assert read_records(file_of("counterfact", tmp_path, [entry]))[0].reference == "P103|English"


@pytest.mark.parametrize("key", ["prompt", "relation_id", "subject", "target_new", "target_true"])
def test_counterfact_fields_inside_the_rewrite(key: str, tmp_path: Path) -> None:
    entry = counterfact()
    del entry["requested_rewrite"][key]
    fault = faults_of(file_of("counterfact", tmp_path, [counterfact(1), entry]))
    assert fault == (f"x.json, record 1 (case_id 3), requested_rewrite: {key!r} is missing.",)


def test_counterfact_prompt_must_say_where_the_subject_goes(tmp_path: Path) -> None:
    for prompt in ("The tongue is", "{} and {}"):
        entry = counterfact()
        entry["requested_rewrite"]["prompt"] = prompt
        assert "must hold {} once" in faults_of(file_of("counterfact", tmp_path, [entry]))[0]


def test_easyedit_values_and_its_warning(tmp_path: Path) -> None:
    records = read_records(file_of("easyedit", tmp_path))
    assert records[0] == Record(
        "case-10", Fact("Tower Hill, by", "Tower Hill", "Sega", "BBC", "case-10"), None, ("Tower Hill was made by",),
        (Probe("Radio Hill, by", "ITV", "Sega"),), source="x.json (easyedit)",
    )  # fmt: skip
    assert "83 %" in "\n".join(records.described())


def test_zsre_values_follow_the_protocol_of_the_file(tmp_path: Path) -> None:
    question, rephrased = zsre()["src"], zsre()["rephrase"]
    portable = zsre(portability={"New Question": "?"}, loc="nq question: who played?")
    plain, edited = read_records(file_of("zsre", tmp_path, [zsre(), portable]))
    assert plain == Record(
        "zsre-0", Fact(question, "Watts Humphrey", "Illinois Institute of Technology", None, "zsre-0"), None,
        (rephrased,),
        (Probe("nq question: who played the father?", "Hugo Weaving", "Illinois Institute of Technology"),),
        source="x.json (zsre)",
    )  # fmt: skip
    assert edited.fact.target == "University of Michigan"
    assert edited.fact.true == "Illinois Institute of Technology"
    assert edited.neighbourhood == (Probe("nq question: who played?", "Hugo Weaving", "University of Michigan"),)


def test_zsre_needs_an_answer(tmp_path: Path) -> None:
    assert faults_of(file_of("zsre", tmp_path, [zsre(answers=[])])) == (
        "x.json, record 0: 'answers' is an empty list.",
    )


def test_own_lines(tmp_path: Path) -> None:
    text = '\ufeff\n{"prompt": "The capital of Peru is", "subject": "Peru", "target": " Cusco "}\r\n\n'
    (record,) = read_records(written(tmp_path, text, "facts.txt"))
    assert record == Record(
        "line-2", Fact("The capital of Peru is", "Peru", "Cusco", None, "line-2"), source="facts.txt (jsonl)"
    )


def test_an_empty_old_answer_is_none(tmp_path: Path) -> None:
    (record,) = read_records(written(tmp_path, [fact_line(true=" ")], "facts.jsonl"))
    assert record.fact.true is None


def test_own_lines_name_every_fault_and_its_line(tmp_path: Path) -> None:
    rows = [
        fact_line(targt="x"),
        fact_line(id="b", neighbourhood=[{"prompt": "p", "true": "t"}]),
        fact_line(id="c", attribute={"prompt": "p"}, paraphrases="one"),
        fact_line(subject="\ud800"),
    ]
    faults = faults_of(written(tmp_path, rows, "f.jsonl"))
    assert faults == (
        "f.jsonl, line 1: unknown key 'targt'; did you mean 'target'? Known: id, prompt, subject, target, true, "
        "relation, paraphrases, neighbourhood, attribute, generation, reference, source.",
        "f.jsonl, line 2 (id b), neighbourhood[0]: 'new' is missing.",
        "f.jsonl, line 3 (id c): 'paraphrases' must be a list, found a text ('one').",
        "f.jsonl, line 3 (id c): 'attribute' must be a list, found an object ({'prompt': 'p'}).",
        "f.jsonl, line 4: 'subject' holds half a character (a lone surrogate).",
    )


def test_many_faults_are_counted_not_listed(tmp_path: Path) -> None:
    faults = faults_of(file_of("easyedit", tmp_path, [easyedit(), *({"case_id": i} for i in range(40))]))
    assert len(faults) == 21
    assert faults[-1] == f"x.json: {40 * 7 - 20} more faults."


# --- what cannot be used ----------------------------------------------------------------------------------------------


def test_unusable_records_are_left_out_listed_and_counted(tmp_path: Path) -> None:
    rows = [
        easyedit(0),
        easyedit(1, subject="Nobody"),
        easyedit(2, target_new=" BBC"),
        easyedit(3, prompt="Tower Hill of Tower Hill, by"),
        easyedit(0),
        easyedit(4, rephrase_prompt=" "),
        easyedit(5, locality_ground_truth=""),
        easyedit(6, subject=""),
        easyedit(7, prompt="Tower Hill, by "),
        easyedit(8, target_new=""),
        easyedit(9),
    ]
    path = file_of("easyedit", tmp_path, rows)
    records = read_records(path)
    assert [record.id for record in records] == ["case-0", "case-9"]
    assert [(one.id, one.where) for one in records.unusable] == [
        (f"case-{0 if i == 4 else i - (i > 4)}", f"record {i} (case_id {rows[i]['case_id']})") for i in range(1, 10)
    ]
    expected = [
        "does not stand", "is the old one", "stands 2 times", "id that was given before, in record 0 (case_id 0)",
        "an empty paraphrase prompt", "a neighbourhood prompt without an answer", "has no subject",
        "ends in white space", "has no target",
    ]  # fmt: skip
    for one, words in zip(records.unusable, expected, strict=True):
        assert len(one.reasons) == 1
        assert words in one.reasons[0]
    assert "9 more cannot be used and are left out:" in records.described()
    faults = faults_of(path, unusable="refuse")
    assert faults[0] == "x.json: 9 records cannot be used."
    assert len(faults) == 10


def test_nothing_usable_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    faults = faults_of(file_of("easyedit", tmp_path, [easyedit(1, subject="Nobody")]))
    assert faults[0] == "x.json holds no record that can be used."
    assert "'Nobody'" in faults[1]


# --- drawn targets ----------------------------------------------------------------------------------------------------


def lakes(tmp_path: Path, rows: list[dict[str, Any]]) -> Any:
    return read_records(file_of("known_1000", tmp_path, rows))


def test_known_facts_have_no_target_until_one_is_drawn(tmp_path: Path) -> None:
    rows = [
        known(0, "Ada Lake", "Canada"), known(1, "Bo Lake", "Peru"), known(2, "Cy Lake", "Canada"),
        known(3, "Di Lake", "Kenya"), known(4, "Elk", "winter", "P9"), known(5, "Fir", "Canada", "P8"),
        known(6, "Oak", "Chile", "P8"), known(7, "Nobody", "Peru", prompt="Somebody lies in"),
    ]  # fmt: skip
    records = lakes(tmp_path, rows)
    assert records.without_target == len(records) == 7
    assert [one.id for one in records.unusable] == ["known-7"]
    drawn = with_drawn_targets(records, seed=5)
    assert drawn.without_target == 0
    assert [record.id for record in drawn] == [f"known-{i}" for i in (0, 1, 2, 3, 5, 6)]
    assert [one.id for one in drawn.unusable] == ["known-7", "known-4"]
    of = {record.id: record.fact for record in drawn}
    assert of["known-5"].target == "Chile"
    assert of["known-6"].target == "Canada"
    assert {of["known-0"].target, of["known-2"].target} <= {"Peru", "Kenya"}
    assert not [fault for fact in drawn.facts for fault in fact.faults()]
    assert not any("draw new targets" in note for note in drawn.notes)  # they are
    assert drawn.notes[-1] == "6 new targets were drawn with seed 5."
    assert with_drawn_targets(records, seed=5) == drawn
    assert with_drawn_targets(drawn, seed=6) is drawn


def test_draws_are_even_and_do_not_depend_on_the_place_in_the_file(tmp_path: Path) -> None:
    # "Canada" is true for 298 of 301, and yet each of the other three is drawn as often for those
    rows = [known(i, f"Lake {i}x", "Canada") for i in range(298)]
    rows += [known(900 + i, f"Sea {i}x", name) for i, name in enumerate(("Peru", "Kenya", "Chile"))]
    drawn = with_drawn_targets(lakes(tmp_path, rows))
    counts = Counter(record.fact.target for record in drawn if record.fact.true == "Canada")
    assert set(counts) == {"Peru", "Kenya", "Chile"}
    assert all(70 < count < 130 for count in counts.values())
    again = with_drawn_targets(lakes(tmp_path, rows[::-1]))
    assert {record.id: record.fact for record in again} == {record.id: record.fact for record in drawn}
    other = with_drawn_targets(lakes(tmp_path, rows), seed=1)
    assert sum(a.fact != b.fact for a, b in zip(drawn, other, strict=True)) > 100


def test_a_target_cannot_be_drawn_without_relation(tmp_path: Path) -> None:
    from dataclasses import replace

    records = lakes(tmp_path, [known(0, "Ada Lake", "Canada"), known(1, "Bo Lake", "Peru")])
    bare = replace(records, records=tuple(replace(record, relation=None) for record in records))
    with pytest.raises(InputError, match="'known-0' has no relation"):
        with_drawn_targets(bare)
    same = lakes(tmp_path, [known(0, "Ada Lake", "Canada"), known(1, "Bo Lake", "Canada")])
    with pytest.raises(InputError, match="no target can be drawn"):
        with_drawn_targets(same)


# --- writing ----------------------------------------------------------------------------------------------------------


def test_what_is_written_reads_back_the_same(tmp_path: Path) -> None:
    bare = Record("r2", Fact("Peru has\u2028the capital", "Peru", "Lima", id="r2"), source="by hand")
    path = tmp_path / "out.jsonl"
    write_records(path, [full_record(), bare])
    assert read_records(path).records == (full_record(), bare)
    assert len(path.read_bytes().split(b"\n")) == 3


def test_records_that_could_not_be_read_back_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("before")
    blank = Record("r2", Fact("Peru lies in", "Peru", "", id="r2"))
    with pytest.raises(InputError) as error:
        write_records(path, [full_record(), full_record(), blank])
    assert error.value.faults == (
        "The id 'r1' occurs twice.",
        "The fact 'r2' has no target; draw one before writing (with_drawn_targets).",
    )
    assert path.read_text() == "before"
    assert [one.name for one in tmp_path.iterdir()] == ["out.jsonl"]


# --- the public files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "format", "count"),
    [
        (("data", "counterfact", "counterfact-val.json"), "easyedit", 1919),
        (("data", "counterfact", "counterfact_rebuilt_first2000.json"), "counterfact", 1995),
        (("data", "known_1000", "known_1000.json"), "known_1000", 1209),
    ],
)
def test_public_files(parts: tuple[str, ...], format: str, count: int, tmp_path: Path) -> None:
    records = read_records(shared(*parts))
    assert (records.format, len(records), len(records.unusable)) == (format, count, 0)
    if format == "known_1000":
        assert records.without_target == 1209
        records = with_drawn_targets(records)
        # one fact has a relation of its own
        assert (len(records), len(records.unusable)) == (1208, 1)
    else:
        assert all(record.fact.true for record in records)
    assert not [fault for fact in records.facts for fault in fact.faults()]
    write_records(tmp_path / "own.jsonl", records)
    assert read_records(tmp_path / "own.jsonl").records == records.records

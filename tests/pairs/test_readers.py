"""Readers: their fixtures value by value, every fault named, and the public files counted."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from engramscope.errors import PairsError, UnknownNameError
from engramscope.pairs import Pair, PairSet, format_names, read_pairs, tokenize_pairs, write_jsonl
from engramscope.pairs.readers import READERS
from engramscope.pairs.readers._base import Reader
from engramscope.pairs.write import as_row
from tests.pairs.tiny_tokenizers import real, shared, word_level

FIXTURES = Path(__file__).parents[1] / "fixtures"
OWN = (
    Pair(
        "p1", "The Eiffel Tower is in the city of", (" Paris",), "The Colosseum is in the city of", (" Rome",), "city",
        {"subject": (4, 16)}, {"subject": (4, 13)}, {"kind": "place"},
    ),
    Pair("p2", "Émile <b>Zola</b> wrote in", (" French",), spans={"subject": (0, 17)}),
    Pair("line-4", "Japan is 日本 in", (" Japanese", " 日本語")),
)  # fmt: skip
FORMATS = {
    "pairs.jsonl": "jsonl", "pairs.csv": "csv", "greater_than.csv": "eap_ig", "greater_than_idx.csv": "eap_ig",
    "ioi.csv": "eap_ig", "sva.csv": "eap_ig", "auto_circuit.json": "auto_circuit", "known_1000.json": "known_1000",
    "counterfact_rome.json": "counterfact", "counterfact_easyedit.json": "counterfact",
}  # fmt: skip


def faults_of(path: Path, **options: Any) -> tuple[str, ...]:
    with pytest.raises(PairsError) as error:
        read_pairs(path, **options)
    return error.value.faults


def written(tmp_path: Path, content: str | bytes, name: str = "x.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- every reader -----------------------------------------------------------------------------------------------------


def test_every_format_has_a_fixture() -> None:
    assert set(format_names()) == {*FORMATS.values(), "parquet"}
    for name in format_names():
        assert issubclass(READERS.get(name), Reader)
        assert READERS.describe(name).endswith((".", "`.")) or READERS.describe(name)


@pytest.mark.parametrize("name", FORMATS)
def test_told_from_its_content_also_under_another_name(name: str, tmp_path: Path) -> None:
    expected = read_pairs(FIXTURES / name, FORMATS[name])
    for other in (name, "data.txt", "no-extension"):
        copy = written(tmp_path, (FIXTURES / name).read_bytes(), other)
        assert read_pairs(copy).pairs == expected.pairs
        assert read_pairs(copy).name == other


@pytest.mark.parametrize("name", FORMATS)
def test_byte_order_mark_and_windows_line_ends_change_nothing(name: str, tmp_path: Path) -> None:
    content = (FIXTURES / name).read_bytes().replace(b"\n", b"\r\n")
    found = read_pairs(written(tmp_path, b"\xef\xbb\xbf" + content, name))
    assert found.pairs == read_pairs(FIXTURES / name).pairs


@pytest.mark.parametrize("name", FORMATS)
def test_what_every_reader_promises(name: str) -> None:
    for pair in read_pairs(FIXTURES / name):
        assert pair.correct
        assert not set(pair.correct) & set(pair.incorrect)
        for text, spans in ((pair.clean, pair.spans), (pair.corrupted or "", pair.corrupted_spans)):
            for start, end in spans.values():
                assert 0 <= start < end <= len(text)
                assert text[start:end] == text[start:end].strip()


@pytest.mark.parametrize("name", format_names())
def test_damaged_files_are_faults_and_never_tracebacks(name: str, tmp_path: Path) -> None:
    damaged: list[bytes] = [
        b"{", b"[]", b"[1, 2]", b"{}", b"null", b"\xff\xfe{\x00}\x00", b"\x00\x01\x02", b'{"clean": 1}', b"[" * 100_000,
        b'[{"case_id": 1, "requested_rewrite": 3}]', b'[{"requested_rewrite": {"prompt": "x", "subject": "y"}}]',
        b"clean,corrupted,label\na,b\n", b'clean,correct\n"a,b\n', b'{"prompts": 3}', b"PAR1 not really PAR1",
        b'{"clean": "x", "correct": ["\\ud800"]}', b'[{"prompt": "\\ud800", "subject": "\\ud800"}]', b"9" * 5000,
        b"clean,corrupted,plural\na,b,2\n", b"clean,corrupted,corrupted_hard,correct_idx,incorrect_idx\na,b,c,1,2\n",
    ]  # fmt: skip
    for content in damaged:
        assert all(faults_of(written(tmp_path, content, "x.bin"), format=name))


def test_missing_empty_unknown(tmp_path: Path) -> None:
    assert faults_of(tmp_path / "none.jsonl")[0].startswith("There is no pair file")
    for content in ("", "\n \r\n", "\ufeff"):
        assert faults_of(written(tmp_path, content)) == ("The pair file x.jsonl is empty.",)
    assert "cannot be read" in faults_of(tmp_path)[0]
    assert "cannot be told" in faults_of(written(tmp_path, "hello", "x.txt"))[0]
    assert faults_of(written(tmp_path, "clean,correct\n", "x.csv")) == ("x.csv holds no pairs.",)
    with pytest.raises(UnknownNameError, match="unknown pair format 'jsonk'; did you mean 'jsonl'"):
        read_pairs(FIXTURES / "pairs.jsonl", "jsonk")


# --- our own formats --------------------------------------------------------------------------------------------------


def test_jsonl_and_csv_value_by_value() -> None:
    assert read_pairs(FIXTURES / "pairs.jsonl").pairs == OWN
    assert read_pairs(FIXTURES / "pairs.csv").pairs == OWN


def test_parquet(tmp_path: Path) -> None:
    rows = [as_row(pair) for pair in OWN]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read_pairs(tmp_path / "a.parquet").pairs == OWN
    # the same as texts, as a table program would have it
    texts = [
        {key: value if isinstance(value, str) else json.dumps(value) for key, value in row.items()} for row in rows
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(texts), tmp_path / "b.parquet")
    assert read_pairs(tmp_path / "b.parquet").pairs == OWN
    pyarrow.parquet.write_table(pyarrow.table({"clean": ["x"], "corect": [" y"]}), tmp_path / "c.parquet")
    faults = faults_of(tmp_path / "c.parquet")
    assert "unknown column 'corect'; did you mean 'correct'?" in faults[0]
    assert faults[1] == "c.parquet, header: the column 'correct' is missing."


LINES: tuple[tuple[str, str], ...] = (
    ("{", "line {n}: not valid JSON"),
    ("[1]", "line {n}: expected an object, found a list"),
    ('{"clean": "a", "clean": "b", "correct": ["c"]}', "line {n}: the key 'clean' is given twice"),
    ('{"clean": "a"}', "line {n}: 'correct' is missing"),
    ('{"correct": ["a"]}', "line {n}: 'clean' is missing"),
    ('{"clean": "", "correct": ["a"]}', "line {n}: 'clean' must be a text that is not empty"),
    ('{"clean": 3, "correct": ["a"]}', "line {n}: 'clean' must be a text that is not empty, found a number (3)"),
    ('{"clean": "a", "correct": []}', "line {n}: 'correct' is an empty list"),
    ('{"clean": "a", "correct": [""]}', "line {n}: 'correct' must be a list of texts that are not empty"),
    ('{"clean": "a", "correct": [1]}', "line {n}: 'correct' must be a list of texts"),
    ('{"clean": "a", "correct": [" b", " b"]}', "line {n}: 'correct' names an answer twice"),
    ('{"clean": "a", "correct": [" b"], "incorrect": [" b"]}', "line {n}: ' b' stands both in"),
    ('{"clean": "a", "corect": [" b"]}', "line {n}: unknown key 'corect'; did you mean 'correct'?"),
    ('{"clean": "a", "correct": [" b"], "spans": [1]}', "line {n}: 'spans' must be an object"),
    ('{"clean": "a", "correct": [" b"], "spans": {"s": [0, 2]}}', "line {n}: the span 's' in 'spans' is [0, 2)"),
    ('{"clean": "a", "correct": [" b"], "spans": {"s": [true, 1]}}', "must be [start, end), two whole numbers"),
    ('{"clean": "a", "correct": [" b"], "spans": {"last": [0, 1]}}', "needs another name"),
    ('{"clean": "a", "correct": [" b"], "corrupted_spans": {"s": [0, 1]}}', "there is no 'corrupted'"),
    ('{"clean": "a", "correct": [" b"], "labels": {"k": [1]}}', "the label 'k' must be a text"),
    ('{"clean": "a", "correct": [" b"], "group": 1.5}', "line {n}: 'group' must be a text"),
    ('{"clean": "\\ud800", "correct": [" b"]}', "half a character"),
)  # fmt: skip


@pytest.mark.parametrize(("line", "expected"), LINES)
def test_each_fault_of_a_line(line: str, expected: str, tmp_path: Path) -> None:
    good = '{"clean": "x", "correct": [" y"]}'
    faults = faults_of(written(tmp_path, f"{good}\n\n{line}\n{good}"))
    assert any(expected.format(n=3) in fault for fault in faults), faults
    assert all(fault.startswith("x.jsonl, line 3: ") for fault in faults)


def test_all_faults_at_once_up_to_twenty(tmp_path: Path) -> None:
    faults = faults_of(written(tmp_path, "\n".join(line for line, _ in LINES[:15])))
    assert {fault.split(":")[0] for fault in faults} == {f"x.jsonl, line {number}" for number in range(1, 16)}
    faults = faults_of(written(tmp_path, "{\n" * 50))
    assert len(faults) == 21
    assert faults[-1] == "x.jsonl: 30 more faults."


def test_doubled_ids(tmp_path: Path) -> None:
    line = '{"id": "a", "clean": "x", "correct": [" y"]}'
    assert faults_of(written(tmp_path, f"{line}\n{line}")) == (
        "x.jsonl, line 2: the id 'a' was given before, in line 1.",
    )


def test_line_separators_inside_a_text_are_text(tmp_path: Path) -> None:
    text = "a\u2028b\u0085c\x0bd"
    path = written(
        tmp_path, json.dumps({"clean": text, "correct": [" y"]}, ensure_ascii=False).replace("\x0b", "\\u000b")
    )
    assert read_pairs(path)[0].clean == text


def test_not_utf8_names_the_line(tmp_path: Path) -> None:
    content = '{"clean": "x", "correct": [" y"]}\n{"clean": "é'.encode("latin-1")
    assert faults_of(written(tmp_path, content)) == (
        "x.jsonl, line 2: the file is not UTF-8 text; save it as UTF-8.",
    )  # fmt: skip


def test_csv_faults(tmp_path: Path) -> None:
    faults = faults_of(written(tmp_path, 'clean,correct\na\nb, c,d\ne,"[1"\n,f\n', "x.csv"))
    assert [fault.split(": ")[0] for fault in faults] == [f"x.csv, line {n}" for n in (2, 3, 4, 5)]
    assert "1 cells where the header names 2" in faults[0]
    assert "not valid JSON" in faults[2]
    assert "not valid CSV" in faults_of(written(tmp_path, 'clean,correct\n"a, b\nc,d\n', "x.csv"))[0]
    assert "stands there twice" in faults_of(written(tmp_path, "clean,correct,clean\na,b,c\n", "x.csv"))[0]
    assert "did you mean 'clean'" in faults_of(written(tmp_path, "claen,correct\na,b\n", "x.csv"))[0]


def test_csv_with_lines_and_long_texts_in_cells(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    text = "one\r\ntwo, three\n" + "é" * 200_000
    path = written(tmp_path, f'clean,correct\n"{text}", yes\n', "x.csv")
    assert read_pairs(path)[0].clean == text
    assert csv.field_size_limit() == before


def test_hundred_thousand_lines(tmp_path: Path) -> None:
    row = '{"id": "%d", "clean": "The %d-th city is", "correct": [" a"], "spans": {"subject": [4, 8]}}'
    path = written(tmp_path, "\n".join(row % (n, n) for n in range(100_000)))
    pairs = read_pairs(path)
    assert len(pairs) == 100_000
    assert pairs[99_999].clean == "The 99999-th city is"


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_round_trip(name: str, tmp_path: Path) -> None:
    pairs = read_pairs(FIXTURES / name)
    write_jsonl(pairs, tmp_path / "out.jsonl")
    assert read_pairs(tmp_path / "out.jsonl").pairs == pairs.pairs
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    write_jsonl(OWN, path)
    before = path.read_bytes()

    def broken() -> Any:
        yield OWN[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(broken(), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.jsonl"]
    with pytest.raises(OSError, match="nowhere"):
        write_jsonl(OWN, tmp_path / "nowhere" / "out.jsonl")


# --- other people's formats -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["greater_than.csv", "greater_than_idx.csv"])
def test_greater_than(name: str) -> None:
    pairs = read_pairs(FIXTURES / name)
    first = pairs[0]
    assert first.correct == tuple(str(year) for year in range(53, 100))
    assert first.incorrect == tuple(f"{year:02d}" for year in range(53))
    assert first.clean[slice(*first.spans["year"])] == "52"
    assert first.group == "siege"
    if len(pairs) > 1:
        assert (pairs[1].correct, pairs[1].group) == (("99",), "old war")
        assert (pairs[2].incorrect, len(pairs[2].correct)) == (("00", "01", "02", "03"), 96)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("The plan lasted from the year 1652 to the year 16,c,53", "the label is '53', but the prompt does not name"),
        ("The plan lasted from the year 1652 to the year 17,c,52", "does not end in its century"),
        ("The plan lasted from the year 1699 to the year 16,c,99", "the last two digits of a year, 0 to 98"),
        ("The plan lasted from the year 1652 to the year 16,c,7041", "the last two digits of a year"),
        ("The plan lasted from the year 1652 to the year 16,c,-1", "the last two digits of a year"),
    ],
)
def test_greater_than_labels_that_are_no_years(row: str, expected: str, tmp_path: Path) -> None:
    (fault,) = faults_of(written(tmp_path, f"clean,corrupted,label\n{row}\n", "x.csv"))
    assert expected in fault
    assert "line 2" in fault


def test_indirect_object() -> None:
    first, second = read_pairs(FIXTURES / "ioi.csv")
    assert (first.correct, first.incorrect) == ((" Ada",), (" Bob",))
    assert [first.clean[slice(*first.spans[name])] for name in ("io", "s1", "s2")] == ["Ada", "Bob", "Bob"]
    assert first.spans["s1"][0] < first.spans["s2"][0]
    assert first.corrupted is not None
    assert first.corrupted[slice(*first.corrupted_spans["s2"])] == "Cyd"
    assert first.group == "When [A] and [B] went to the pond, [B] gave a leaf to"
    assert (second.correct, second.incorrect) == ((" Cyd",), (" Bob",))


def test_indirect_object_ids_of_another_tokenizer(tmp_path: Path) -> None:
    faults = faults_of(FIXTURES / "ioi.csv", tokenizer=word_level())
    assert len(faults) == 4
    assert "the file was made for another" in faults[0]
    content = (FIXTURES / "ioi.csv").read_text().replace(",33,22", ",33,44")
    (fault,) = faults_of(written(tmp_path, content, "x.csv"))
    assert "' Bob' has the token id 44 here but 22 before" in fault


def test_agreement() -> None:
    first, second = read_pairs(FIXTURES / "sva.csv")
    assert (first.correct, first.incorrect) == ((" are", " were", " have"), (" is", " was", " has"))
    assert (second.correct, second.incorrect) == (first.incorrect, first.correct)
    assert [pair.clean[slice(*pair.spans["noun"])] for pair in (first, second)] == ["boats", "cook"]
    assert (second.corrupted or "")[slice(*second.corrupted_spans["noun"])] == "cooks"
    assert (first.group, first.labels) == ("across", {"number": "plural"})


def test_auto_circuit() -> None:
    first, second = read_pairs(FIXTURES / "auto_circuit.json")
    assert first.clean == "def f(a, b):\n    :param"
    assert (first.correct, first.incorrect) == ((" a",), (" c", " d"))
    assert (second.id, second.corrupted) == ("prompt-1", "Cyd met Dan. Eve told")


def test_facts() -> None:
    lake, sled = read_pairs(FIXTURES / "known_1000.json")
    assert (lake.id, lake.correct, lake.group) == ("known-4", (" Canada",), "P17")
    assert lake.labels["template"] == "{} is located in the country of"
    assert sled.clean[slice(*sled.spans["subject"])] == "Bobsled"
    (rome,) = read_pairs(FIXTURES / "counterfact_rome.json")
    assert rome.clean == "The mother tongue of Ada {Lovely} is"
    assert (rome.correct, rome.incorrect, rome.group) == ((" French",), (" English",), "P103")
    assert rome.clean[slice(*rome.spans["subject"])] == "Ada {Lovely}"
    (easy,) = read_pairs(FIXTURES / "counterfact_easyedit.json")
    assert (easy.id, easy.clean, easy.correct, easy.incorrect) == ("case-10", "Tower Hill, by", (" BBC",), (" Sega",))
    assert easy.group == "{}, by"


def test_a_subject_that_is_missing_or_doubled(tmp_path: Path) -> None:
    entry = {"known_id": 1, "subject": "Ada", "attribute": "x", "prompt": "Ada and Ada", "relation_id": "P"}
    assert "more than once" in faults_of(written(tmp_path, json.dumps([entry])))[0]
    assert "does not stand in the prompt" in faults_of(written(tmp_path, json.dumps([entry | {"subject": "Bo"}])))[0]


def raw_rows(path: Path) -> int:
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return sum(1 for _ in csv.DictReader(file))
    content = json.loads(path.read_text())
    return len(content["prompts"] if isinstance(content, dict) else content)


@pytest.mark.parametrize(
    ("path", "count"),
    [
        ("eap_ig/greater_than_gpt2.csv", 1000), ("eap_ig/ioi_gpt2.csv", 1000), ("eap_ig/sva_gpt2.csv", 12400),
        ("greater_than/eap_ig_greater_than_data.csv", 1000), ("ioi/eap_ig_ioi_llama.csv", 499),
        ("docstring/auto_circuit_docstring_prompts.json", 1000), ("ioi/auto_circuit_ioi_prompts.json", 1000),
        ("known_1000/known_1000.json", 1209), ("counterfact/counterfact-val.json", 1919),
        ("counterfact/counterfact_rebuilt_first2000.json", 1995),
    ],
)  # fmt: skip
def test_public_files(path: str, count: int) -> None:
    file = shared("data", path)
    pairs = read_pairs(file)
    assert len(pairs) == count == raw_rows(file)
    for pair in pairs:
        assert not set(pair.correct) & set(pair.incorrect)
        for start, end in pair.spans.values():
            assert pair.clean[start:end].strip() == pair.clean[start:end] != ""
    sample = PairSet(pairs.pairs[:60])
    tokens = tokenize_pairs(sample, real("gpt2-tokenizer"))
    assert len(tokens) == 60
    for pair in tokens:
        assert set(pair.clean.spans) == set(pair.pair.spans)


def test_public_ids_decode_to_the_names() -> None:
    file = shared("data", "eap_ig/ioi_gpt2.csv")
    tokenizer = real("gpt2-tokenizer")
    pairs = read_pairs(file, tokenizer=tokenizer)
    with file.open(newline="") as lines:
        for row, pair in zip(csv.DictReader(lines), pairs, strict=True):
            assert tokenizer.decode([int(row["correct_idx"])]) == pair.correct[0]
            assert tokenizer.decode([int(row["incorrect_idx"])]) == pair.incorrect[0]
    with pytest.raises(PairsError, match="the file was made for another"):
        read_pairs(shared("data", "ioi/eap_ig_ioi_llama.csv"), tokenizer=tokenizer)

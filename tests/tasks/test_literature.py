"""The literature's tasks: who is who in a prompt, what the corruption changes, and which words a tokenizer allows."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from engramscope import bundled
from engramscope.errors import InputError, PairsError, StudyError
from engramscope.pairs import Pair, tokenize_pairs
from engramscope.study_inputs import read_inputs
from engramscope.tasks import make_pairs
from tests.pairs.tiny_tokenizers import shared

TASKS_WITH_WORDS = ("ioi", "greater_than", "docstring", "arithmetic", "factual")


def span(pair: Pair, role: str, corrupted: bool = False) -> str:
    text = pair.corrupted if corrupted else pair.clean
    start, end = (pair.corrupted_spans.get(role) if corrupted else None) or pair.spans[role]
    assert text is not None
    return text[start:end]


def tokenizer_of(name: str) -> Any:
    folder = shared("models", "gpt2-tokenizer") if name == "gpt2" else bundled.folder(name)
    return AutoTokenizer.from_pretrained(folder)


# ------------------------------------------------------------------------------------------------------ tokenizers


@pytest.mark.parametrize("tokenizer", ["mini", "mini-llama", "gpt2"])
@pytest.mark.parametrize("name", TASKS_WITH_WORDS)
def test_every_answer_is_one_token_and_both_prompts_have_equally_many(name: str, tokenizer: str) -> None:
    words = tokenizer_of(tokenizer)
    pairs = make_pairs(name, 60, 1, words)
    assert len(pairs) == 60
    for pair in tokenize_pairs(pairs, words):
        assert all(len(answer) == 1 for answer in (*pair.correct, *pair.incorrect))
        assert len(pair.clean) == len(pair.corrupted)
        assert pair.changed
        assert pair.clean.spans == pair.corrupted.spans
        if name != "factual":
            assert all(len(positions) == 1 for positions in pair.clean.spans.values())


@pytest.mark.parametrize("name", TASKS_WITH_WORDS)
def test_a_tokenizer_of_syllables_is_refused_in_a_sentence(name: str) -> None:
    words = AutoTokenizer.from_pretrained(shared("models", "stories260K"))
    with pytest.raises(PairsError, match=r"one token|two tokens"):
        make_pairs(name, 20, 0, words)


# ------------------------------------------------------------------------------------------------------------- ioi


@pytest.mark.parametrize("corrupt", ["s2", "s1_io", "abc"])
def test_indirect_objects(corrupt: str) -> None:
    pairs = make_pairs("ioi", 300, 0, corrupt=corrupt)
    for pair in pairs:
        io, s1, s2 = (span(pair, role) for role in ("io", "s1", "s2"))
        assert s1 == s2 != io
        assert (pair.correct, pair.incorrect) == ((f" {io}",), (f" {s1}",))
        assert (pair.spans["io"] < pair.spans["s1"]) == (pair.labels["order"] == "ABBA")
        assert max(pair.spans["io"], pair.spans["s1"]) < pair.spans["s2"]
        new = [span(pair, role, corrupted=True) for role in ("io", "s1", "s2")]
        if corrupt == "s2":
            assert new == [io, s1, io]
        elif corrupt == "s1_io":
            assert new[2] == s2
            assert len({*new, io, s1}) == 4
        else:
            assert len({*new, io, s1}) == 5
    # every frame in both orders, equally often
    counts = Counter((pair.labels["frame"], pair.labels["order"]) for pair in pairs)
    assert len(counts) == 30
    assert set(counts.values()) == {10}
    assert len({pair.clean for pair in pairs}) == 300


# ---------------------------------------------------------------------------------------------------- greater than


def test_year_spans() -> None:
    pairs = make_pairs("greater_than", 300)
    years = Counter()
    for pair in pairs:
        year = int(span(pair, "yy"))
        years[year] += 1
        assert span(pair, "yy", corrupted=True) == "01"
        start = pair.spans["yy"][0]
        assert pair.clean[:start] + "01" + pair.clean[start + 2 :] == pair.corrupted
        assert pair.clean.endswith(f" {pair.labels['century']}")
        assert pair.clean[start - 2 : start] == pair.labels["century"]
        assert [int(answer) for answer in pair.correct] == list(range(year + 1, 100))
        assert [int(answer) for answer in pair.incorrect] == list(range(year))
    assert set(years) == set(range(2, 99))
    assert max(years.values()) - min(years.values()) <= 1
    assert len({pair.clean for pair in pairs}) == 300


# ------------------------------------------------------------------------------------------------------- docstring


def test_docstrings() -> None:
    for pair in make_pairs("docstring", 60):
        a, b, c = (span(pair, role) for role in ("a_def", "b_def", "c_def"))
        assert (span(pair, "a_doc"), span(pair, "b_doc")) == (a, b)
        signature = pair.clean[pair.clean.index("(") + 1 : pair.clean.index(")")].split(", ")
        assert signature[0] == "self"
        assert signature[3:6] == [a, b, c]
        assert len(set(signature)) == 7
        other = span(pair, "c_def", corrupted=True)
        assert other not in signature
        assert pair.correct == (f" {c}",)
        assert set(pair.incorrect) == {f" {word}" for word in (*signature[1:5], signature[6], other)}
        assert pair.clean.count(c) >= 1
        assert pair.clean.endswith(":param")


# ------------------------------------------------------------------------------------------------------ arithmetic


@pytest.mark.parametrize(("operation", "largest"), [("+", None), ("-", None), ("x", None), ("+", 30)])
def test_sums(operation: str, largest: int | None) -> None:
    pairs = make_pairs("arithmetic", 80, 0, operation=operation, largest=largest)
    assert len(pairs) == 80
    work = {"+": int.__add__, "-": int.__sub__, "x": int.__mul__}[operation]
    for pair in pairs:
        *shown, asked = pair.clean.split("\n")
        for line in shown:
            x, sign, y, _, z = line.split()
            assert sign == operation
            assert work(int(x), int(y)) == int(z)
        for corrupted, answer in ((False, pair.correct), (True, pair.incorrect)):
            x, y = (int(span(pair, role, corrupted)) for role in ("x3", "y3"))
            assert 1 <= y <= (largest or (23 if operation == "x" else 250))
            assert answer == (f" {work(x, y)}",)
            assert work(x, y) >= 0
        assert asked == f"{span(pair, 'x3')} {operation} {span(pair, 'y3')} ="
        assert pair.correct[0].strip() not in pair.clean.split()
        assert pair.incorrect[0].strip() not in pair.clean.split()


# --------------------------------------------------------------------------------------------------------- factual


def test_facts_come_in_couples_both_ways() -> None:
    words = tokenizer_of("mini")
    pairs = make_pairs("factual", 100, 0, words)
    couples: dict[str, list[Pair]] = {}
    for pair in pairs:
        couples.setdefault(pair.labels["couple"], []).append(pair)
    assert len(couples) == 50
    for one, other in couples.values():
        assert (one.clean, one.corrupted) == (other.corrupted, other.clean)
        assert (one.correct, one.incorrect) == (other.incorrect, other.correct)
        assert not set(one.correct) & set(one.incorrect)
        start, end = one.spans["subject"]
        assert one.group == other.group == f"{one.clean[:start]}{{}}{one.clean[end:]}"
    # a fact is in one couple at most, and templates come in turns
    assert len({pair.clean for pair in pairs}) == 100
    assert max(Counter(pair.group for pair in pairs).values()) <= 4


def test_facts_of_a_file_and_how_many_could_be_paired(tmp_path: Path) -> None:
    facts = [("Rome", "Italy"), ("Paris", "France"), ("Lyon", "France"), ("Nice", "France")]
    rows = [
        {"id": city, "clean": f"{city} is a city in", "correct": [f" {country}"], "spans": {"subject": [0, len(city)]}}
        for city, country in facts
    ]
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pairs = make_pairs("factual", folder=tmp_path, files=["facts.jsonl"])
    assert len(pairs) == 2  # three of the four have the same answer
    assert {"Rome is a city in"} < {pair.clean for pair in pairs}
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[1:]), encoding="utf-8")
    with pytest.raises(PairsError, match="Among 3 facts there are no two"):
        make_pairs("factual", folder=tmp_path, files=["facts.jsonl"])


@pytest.mark.parametrize("file", ["known_1000/known_1000.json", "counterfact/counterfact_rebuilt_first2000.json"])
def test_published_facts_are_paired(file: str) -> None:
    path, words = shared("data", file), tokenizer_of("gpt2")
    pairs = make_pairs("factual", 290, 0, words, path.parent, files=[path.name])
    assert len(pairs) >= 100
    for pair in tokenize_pairs(pairs, words):
        assert len(pair.clean) == len(pair.corrupted)
        assert len(pair.correct[0]) == len(pair.incorrect[0]) == 1
        assert pair.correct != pair.incorrect


# -------------------------------------------------------------------------------------------------- the study file


def study(tmp_path: Path, pairs: str) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(
        f'schema = 1\nname = "s"\n[model]\nname = "mini"\n[pairs]\n{pairs}\n[[sweep]]\nname = "h"\nsite = "z"\n',
        encoding="utf-8",
    )
    return path


def test_options_stand_beside_the_name_of_the_task(tmp_path: Path) -> None:
    inputs = read_inputs(study(tmp_path, 'task = "ioi"\ncorrupt = "abc"\nlimit = 20'))
    assert inputs.pairs.pairs == make_pairs("ioi", 20, 0, tokenizer_of("mini"), corrupt="abc").pairs
    assert inputs.resolved["pairs"]["corrupt"] == "abc"


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ('task = "ioi"\ncorupt = "abc"', "has no option 'corupt'; did you mean 'corrupt'?"),
        ('task = "ioi"\nlimt = 3', "has no option 'limt'; did you mean 'limit'?"),
        ('task = "ioi"\ncorrupt = "s3"', "task 'ioi': option 'corrupt'"),
        ('task = "clap_epilepsy"\ncorrupt = "abc"', "has no option 'corrupt'"),
        ('file = "a.jsonl"\ncorrupt = "abc"', "unknown key 'corrupt'"),
        ('task = "factual"\nfiles = ["nowhere.json"]', "nowhere.json"),
    ],
)
def test_options_at_fault_are_named(tmp_path: Path, pairs: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        read_inputs(study(tmp_path, pairs))
    assert said in str(caught.value)


def test_unknown_options_from_python() -> None:
    with pytest.raises(StudyError, match="task 'ioi': unknown option 'corupt'; did you mean 'corrupt'"):
        make_pairs("ioi", 5, corupt="s2")

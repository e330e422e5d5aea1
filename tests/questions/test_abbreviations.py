"""The rule of Schwartz and Hearst: its paper's examples, hard cases, and a plain second implementation."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engramscope.questions.abbreviations import (
    Definition,
    best_long_form,
    could_stand_for,
    definitions,
    is_long_form,
    is_short_form,
    most_words,
)
from engramscope.questions.text import read_documents
from tests.questions.corpora import real_corpus


def found(sentence: str) -> list[tuple[str, str]]:
    return [(one.short, one.long) for one in definitions(sentence)]


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("the heat shock transcription factor (HSF) binds", [("HSF", "heat shock transcription factor")]),
        ("a Gcn5-related N-acetyltransferase (GNAT) was", [("GNAT", "Gcn5-related N-acetyltransferase")]),
        ("levels of transthyretin (TTR) fell", [("TTR", "transthyretin")]),
        ("a magnetic resonance imaging (MRI) scan", [("MRI", "magnetic resonance imaging")]),
        # the authors' own example of what the rule misses: nothing in the text answers to the digit
        ("the cyclophilin seven suppressor (CNS1) gene", []),
        ("we used HSF (heat shock transcription factor) here", [("HSF", "heat shock transcription factor")]),
        ("we used EEG (scalp electroencephalographic) here", []),  # two words inside: taken for a short form, too long
        ("the cell line of Henrietta Lacks (HeLa) grew", [("HeLa", "Henrietta Lacks")]),
        ("in cells (HeLa) grew", []),
        ("electroencephalograms (EEGs) were read", [("EEGs", "electroencephalograms")]),
        ("antiepileptic drugs (AEDs) were given", [("AEDs", "antiepileptic drugs")]),
        ("in patients (n = 24) there was", []),
        ("it was higher (p < 0.05) than", []),
        ("it was published (2003) and", []),
        ("interleukin-6 (IL-6) rose", [("IL-6", "interleukin-6")]),
        ("the 5-hydroxytryptamine (5-HT) level", [("5-HT", "5-hydroxytryptamine")]),
        ("tumour necrosis factor α (TNFα) rose", [("TNFα", "tumour necrosis factor α")]),
        ("γ-aminobutyric acid (γABA) rose", [("γABA", "γ-aminobutyric acid")]),
        ("of electroencephalography (EEG; n = 24) and", [("EEG", "electroencephalography")]),
        ("of electroencephalography (EEG, scalp) and", [("EEG", "electroencephalography")]),
        ("a scan (magnetic resonance imaging (MRI)) was", [("MRI", "magnetic resonance imaging")]),
        # the text of the outer bracket only: "temporal" stands before it
        ("temporal (lobe epilepsy (TLE)) was", []),
        ("status epilepticus (SE) and temporal lobe epilepsy (TLE)",
         [("SE", "status epilepticus"), ("TLE", "temporal lobe epilepsy")]),
        ("the EEG recording group (EEG) met", []),  # the long form holds the short form as a word
        ("a (EEG) was", []),
        ("poly(ADP) was", []),
        ("never closed (EEG", []),
        (") closed first (EEG)", []),
        ("long-term potentiation (LTP) of", [("LTP", "long-term potentiation")]),
        ("non-rapid eye movement (REM) sleep", [("REM", "non-rapid eye movement")]),  # as published: from its word on
    ],
)  # fmt: skip
def test_definitions_of_a_sentence(sentence: str, expected: list[tuple[str, str]]) -> None:
    assert found(sentence) == expected


@pytest.mark.parametrize("text", ["EEG", "5-HT", "TNF alpha", "ab", "a234567890", "IL-6", "αβ"])
def test_short_forms(text: str) -> None:
    assert is_short_form(text)


@pytest.mark.parametrize("text", ["", "E", "12", "-EEG", "a2345678901", "a b c", "(EEG", "= 24", "0.05"])
def test_no_short_forms(text: str) -> None:
    assert not is_short_form(text)


def test_the_window_is_the_smaller_of_five_more_and_twice_as_many() -> None:
    assert [most_words("A" * n) for n in (2, 3, 4, 5, 6, 10)] == [4, 6, 8, 10, 11, 15]
    # "AB" may reach back four words, not five
    assert found("abc one two bcd (AB)") == [("AB", "abc one two bcd")]
    assert found("abc one two three bcd (AB)") == []


def test_a_long_form_is_no_shorter_and_does_not_hold_the_short_form_as_a_word() -> None:
    assert is_long_form("EEG", "electroencephalogram")
    assert not is_long_form("EEG", "eg")
    assert not is_long_form("SE", "SE status")
    assert is_long_form("SE", "SEsame"), "part of a word is no word"
    assert not is_long_form("TLE", "lobe) epilepsy")


def test_what_an_abbreviation_could_stand_for() -> None:
    assert could_stand_for("MS", "multiple sclerosis")
    assert could_stand_for("MS", "mitochondrial syndrome")
    assert not could_stand_for("MS", "the multiple sclerosis")
    assert not could_stand_for("TLE", "multiple sclerosis")


# --- a second implementation, straight from the paper's words


def plain_long_form(short: str, text: str) -> str | None:
    """The last place that will do, character by character from the right."""
    end = len(text)
    letters = [(place, c) for place, c in enumerate(short) if c.isalnum()]
    for place, character in reversed(letters):
        fits = []
        for at in range(end):
            same = text[at].lower() == character.lower()
            begins = at == 0 or not text[at - 1].isalnum()
            if same and (place > 0 or begins):
                fits.append(at)
        if not fits:
            return None
        end = fits[-1]
    while end > 0 and text[end - 1] != " ":
        end -= 1
    return text[end:]


def plain_definitions(sentence: str) -> list[tuple[str, str]]:
    result = []
    for start, character in enumerate(sentence):
        if character != "(":
            continue
        depth, end = 0, None
        for place in range(start, len(sentence)):
            depth += (sentence[place] == "(") - (sentence[place] == ")")
            if depth == 0:
                end = place
                break
        # back to the bracket that this one stands in
        outer, depth = 0, 0
        for place in range(start - 1, -1, -1):
            depth += (sentence[place] == ")") - (sentence[place] == "(")
            if depth < 0:
                outer = place + 1
                break
        if end is None or (start != outer and sentence[start - 1] != " "):
            continue
        before, inside = sentence[outer:start].split(" "), sentence[start + 1 : end]
        before = [word for word in before if word]
        first = inside
        for mark in ";,":
            first = first.split(mark)[0]
        first = first.strip()
        if len(first.split()) > 2:
            short, text = before[-1] if before else "", inside.strip()
        else:
            short, text = first, None
        if not (2 <= len(short) <= 10 and len(short.split()) <= 2):
            continue
        if not short[0].isalnum() or not any(c.isalpha() for c in short):
            continue
        window = min(len(short) + 5, 2 * len(short))
        if text is None:
            text = " ".join(before[-window:] if before else [])
        long = plain_long_form(short, text)
        if long is None or len(long) < len(short) or len(long.split()) > window:
            continue
        padded, word = f" {long} ", False
        for at in range(1, len(padded) - len(short)):
            around = padded[at - 1] + padded[at + len(short)]
            word |= padded[at : at + len(short)] == short and not any(c.isalnum() or c == "_" for c in around)
        if word:
            continue
        if any(long[: n + 1].count(")") > long[: n + 1].count("(") for n in range(len(long))):
            continue
        if long.count("(") != long.count(")"):
            continue
        result.append((short, long))
    return result


@settings(max_examples=300, deadline=None)
@given(short=st.text("abcA-1 ", min_size=1, max_size=5), text=st.text("abcA-1 ()", max_size=25))
def test_best_long_form_agrees_with_the_plain_one(short: str, text: str) -> None:
    if short[0].isalnum():
        assert best_long_form(short, text) == plain_long_form(short, text)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["(", ")", " ", "ab", "Bc", "a", "AB", "b;", "a-b", "1", ","]), max_size=20))
def test_definitions_agree_with_the_plain_ones(parts: list[str]) -> None:
    sentence = " ".join("".join(parts).split())
    if ")" in sentence and sentence.count("(") == sentence.count(")"):
        assert found(sentence) == plain_definitions(sentence)


def test_definitions_agree_with_the_plain_ones_on_real_abstracts() -> None:
    sentences = [
        sentence for document in read_documents(real_corpus().head(1500)) for sentence in document.sentences
        if "(" in sentence and sentence.count("(") == sentence.count(")")
    ]  # fmt: skip
    ours = [found(sentence) for sentence in sentences]
    assert ours == [plain_definitions(sentence) for sentence in sentences]
    assert sum(map(len, ours)) > 1000


def test_a_definition_is_plain_data() -> None:
    assert definitions("status epilepticus (SE)") == [Definition("SE", "status epilepticus")]

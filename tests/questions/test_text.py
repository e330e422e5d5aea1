"""Sentences, words and their stems."""

from __future__ import annotations

import pytest

from engramscope.questions.text import read_documents, sentences, stem, stems, words
from tests.questions.corpora import table


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Drugs vs. Surgery was asked. It was.", ["Drugs vs. Surgery was asked.", "It was."]),
        ("By Scheffer et al. Here we see.", ["By Scheffer et al. Here we see."]),
        ("As in J. Smith. Then more.", ["As in J. Smith.", "Then more."]),
        ("At 2.5 Hz it was. 24 had it.", ["At 2.5 Hz it was.", "24 had it."]),
        ("In (a trial. A second) it held. Yes.", ["In (a trial. A second) it held.", "Yes."]),
        ("It was seen (43%).The rest was not.", ["It was seen (43%).", "The rest was not."]),
        ("The c.425G>A, p.Gly142Asp variant.", ["The c.425G>A, p.Gly142Asp variant."]),
        ('He said "no." Then he left.', ['He said "no."', "Then he left."]),
        ("  white \n\t space  ", ["white space"]),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_no_character_is_lost_and_an_open_bracket_does_not_swallow_an_abstract() -> None:
    text = "Never closed (here. " + " ".join(f"Sentence {n} is one of many." for n in range(60))
    found = sentences(text)
    assert " ".join(found) == text
    assert len(found) > 30


def test_words_and_stems() -> None:
    assert words("EEG-fMRI, α2 of SCN1A's (x_y)") == ["EEG", "fMRI", "α2", "of", "SCN1A", "s", "x", "y"]
    assert [stem(word) for word in ("Seizures", "epilepsies", "sclerosis", "loss", "status", "gas", "Dies")] == [
        "seizure", "epilepsy", "sclerosis", "loss", "status", "gas", "die",
    ]  # fmt: skip
    assert stems("Temporal-lobe epilepsies") == ("temporal", "lobe", "epilepsy")


def test_documents_begin_with_their_title_and_missing_text_is_empty() -> None:
    corpus = table(["A first one. A second.", ""], titles=["Title here", ""])
    corpus.loc[1, "Abstract"] = None
    one, two = read_documents(corpus)
    assert one.pmid == "1"
    assert one.sentences == ("Title here", "A first one.", "A second.")
    assert two.sentences == ()

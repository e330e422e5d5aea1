"""A fact as it is written on the command line."""

from __future__ import annotations

import pytest

from engramscope.editing.fact_text import parse_fact
from engramscope.errors import InputError
from engramscope.records.fact import Fact


def test_the_subject_stands_in_braces() -> None:
    fact = parse_fact("The mother tongue of {Danielle Darrieux} is", " English ", "French")
    assert fact == Fact("The mother tongue of Danielle Darrieux is", "Danielle Darrieux", "English", "French")
    assert parse_fact("{Anna} plays", "drums").true is None
    assert parse_fact("{Anna} plays", "drums", " ").true is None


def test_a_brace_of_the_text_is_doubled() -> None:
    fact = parse_fact("In {{TeX}} the macro {a{{b}}c} means", "bold")
    assert (fact.prompt, fact.subject) == ("In {TeX} the macro a{b}c means", "a{b}c")


@pytest.mark.parametrize(
    ("text", "target", "true", "said"),
    [
        ("The mother tongue of Danielle is", "English", None, "put the subject in braces"),
        ("Danielle speaks => English", "English", None, "behind --target"),
        ("{Anna} and {Bob} are", "friends", None, "one subject"),
        ("{Anna is", "tall", None, "one subject"),
        ("Anna} is", "tall", None, "one subject"),
        ("}Anna{ is", "tall", None, "one subject"),
        ("{An{na} is", "tall", None, "one subject"),
        ("{ Anna} is", "tall", None, "without white space"),
        ("{} is", "tall", None, "has no subject"),
        ("{Anna} is", " ", None, "has no target"),
        ("{Anna} knows Anna and", "Bob", None, "stands 2 times"),
        ("{Anna} is ", "tall", None, "ends in white space"),
        ("{Anna} is", "tall", " tall", "is the old one"),
    ],
)
def test_what_is_wrong_is_said(text: str, target: str, true: str | None, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        parse_fact(text, target, true)
    assert len(caught.value.faults) == 1

"""A fact as it is written on the command line: the prompt with its subject in braces."""

from __future__ import annotations

import re

from engramscope.errors import InputError
from engramscope.records.fact import Fact, ensure_facts

_EXAMPLE = 'as in "The mother tongue of {Danielle Darrieux} is"'
#: doubled braces stand for themselves
_PIECES = re.compile(r"\{\{|\}\}|\{|\}|[^{}]+")


def parse_fact(text: str, target: str, true: str | None = None) -> Fact:
    """The fact that is meant by a prompt with its subject in braces.

    "The mother tongue of {Danielle Darrieux} is", "English" -> a fact about Danielle Darrieux. A brace of the text
    itself is doubled.

    Args:
        text: the prompt, right up to the answer.
        target: the new answer.
        true: the old answer.

    Raises:
        InputError: there is no subject in braces, or several; the prompt, the subject or an answer is empty; the
            subject stands in the prompt twice; the new answer is the old one.
    """
    pieces = _PIECES.findall(text)
    opened, closed = pieces.count("{"), pieces.count("}")
    if opened == 0 and closed == 0:
        hint = " The new answer goes behind --target." if "=>" in text else ""
        raise InputError(
            f"The fact {text!r} does not say what it is about: put the subject in braces, {_EXAMPLE}.{hint}"
        )
    if opened != 1 or closed != 1 or pieces.index("{") > pieces.index("}"):
        raise InputError(
            f"The fact {text!r} must have one subject, between one {{ and one }}, {_EXAMPLE}; a brace that belongs to "
            "the text is doubled."
        )
    begin, end = pieces.index("{"), pieces.index("}")
    plain = ["{" if piece == "{{" else "}" if piece == "}}" else piece for piece in pieces]
    before, subject, after = ("".join(part) for part in (plain[:begin], plain[begin + 1 : end], plain[end + 1 :]))
    if subject != subject.strip():
        raise InputError(f"The fact {text!r}: put the braces right round the subject, without white space inside them.")
    fact = Fact(before + subject + after, subject, target.strip(), (true or "").strip() or None)
    ensure_facts([fact])
    return fact

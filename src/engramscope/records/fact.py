"""A fact that a model is to state differently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engramscope.errors import InputError, shortened


@dataclass(frozen=True, slots=True)
class Fact:
    """One edit that is asked for: after `prompt` the model is to say `target`.

    Attributes:
        prompt: text right up to the target; the subject stands in it exactly once.
        subject: whom or what the fact is about.
        target: the new answer, of one token or many, without the space before it.
        true: the answer that the model gives, or should give, before the edit; None where nobody said.
        id: names the fact in messages and tables.
    """

    prompt: str
    subject: str
    target: str
    true: str | None = None
    id: str = ""

    @property
    def subject_span(self) -> tuple[int, int]:
        """Characters [start, end) of the subject in the prompt."""
        start = self.prompt.index(self.subject)
        return start, start + len(self.subject)

    def faults(self) -> list[str]:
        """What is wrong with the fact, a sentence each; empty where nothing is."""
        name = f"The fact {self.id!r}" if self.id else f"The fact {self.prompt!r}"
        found = [f"{name} has no {what}." for what, text in self._texts() if not text.strip()]
        if found:
            return found
        if self.prompt != self.prompt.rstrip():
            found.append(f"{name}: the prompt ends in white space, which belongs to the answer; end it before that.")
        count = _occurrences(self.prompt, self.subject)
        if count == 0:
            found.append(f"{name}: the subject {self.subject!r} does not stand in the prompt {self.prompt!r}.")
        elif count > 1:
            found.append(
                f"{name}: the subject {self.subject!r} stands {count} times in the prompt {self.prompt!r}, so it "
                "cannot be told which of them is meant; word the prompt so that it stands there once."
            )
        if self.true is not None and self.true.strip() == self.target.strip():
            found.append(f"{name}: the new target {self.target!r} is the old one, so there is nothing to edit.")
        return found

    def _texts(self) -> list[tuple[str, str]]:
        return [("prompt", self.prompt), ("subject", self.subject), ("target", self.target)]


def ensure_facts(facts: Sequence[Fact]) -> None:
    """Refuse facts that cannot be edited.

    Raises:
        InputError: there are none, or some are at fault; a sentence for each, at most 20.
    """
    if not facts:
        raise InputError("There is no fact to edit.")
    faults = [fault for fact in facts for fault in fact.faults()]
    if faults:
        raise InputError(shortened(faults))


def _occurrences(text: str, part: str) -> int:
    """How often a part stands in a text, overlaps counted."""
    return sum(text.startswith(part, start) for start in range(len(text) - len(part) + 1))

"""A record of CounterFact: a fact to edit, and the prompts that show what the edit did."""

from __future__ import annotations

from dataclasses import dataclass

from engramscope.records.fact import Fact


@dataclass(frozen=True, slots=True)
class Probe:
    """A prompt and the two answers that are compared after it.

    Attributes:
        prompt: text right up to the answer.
        true: the answer that is right before the edit, without the space before it.
        new: the answer that the edit asks for.
    """

    prompt: str
    true: str
    new: str


@dataclass(frozen=True, slots=True)
class Record:
    """One case of an editing benchmark.

    Attributes:
        id: unique within its file.
        fact: what is edited; `fact.true` is there in CounterFact, and may be None elsewhere.
        relation: identifier of the relation ("P103"), where there is one.
        paraphrases: other prompts with the same answer.
        neighbourhood: prompts about other subjects, with the answers that must not change. In CounterFact the true
            answer is that of the edited fact; elsewhere each prompt has its own.
        attribute: prompts about subjects for which the new answer is true.
        generation: beginnings of texts about the subject.
        reference: names the texts that a generated one is compared with (relation and new object, "P103|Q150").
        source: the file and schema that it was read from.
    """

    id: str
    fact: Fact
    relation: str | None = None
    paraphrases: tuple[str, ...] = ()
    neighbourhood: tuple[Probe, ...] = ()
    attribute: tuple[Probe, ...] = ()
    generation: tuple[str, ...] = ()
    reference: str | None = None
    source: str = ""

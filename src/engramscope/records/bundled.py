"""A small CounterFact for the bundled models: 1,200 records about the 300 invented people of their corpus.

Every person gives four records: sport, instrument, profession and home. Everything is derived from
`engramscope.bundled.world` and fixed seeds, so the set is the same everywhere, and nothing is read or downloaded.

**Train and test.** Whoever lives in the same city is in the same split, by a checksum of the city. So no subject is in
both, and no record of the training split names a person of the test split in any of its prompts. The records of the
test split prefer neighbours from their own split and take others where those do not suffice.

**Wordings.** The corpus states a fact in six of the seven wordings of its relation. The rewrite prompt is one of the
six. The first paraphrase is the seventh, in which the models were never told this fact; the second is another of the
six behind a sentence about somebody else, as CounterFact's paraphrases stand behind unrelated text.

**Homes.** Only three or four people live in a city, so the ten prompts about neighbours are about two or three people,
in several wordings each. For the other relations they are about ten people in the test split.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from engramscope.bundled.sentences import is_held_out
from engramscope.bundled.world import Fact as WorldFact
from engramscope.bundled.world import load_world
from engramscope.records.fact import Fact
from engramscope.records.read import Records
from engramscope.records.record import Probe, Record
from engramscope.records.write import lines_of

Split = Literal["test", "train", "all"]

RELATIONS = ("sport", "instrument", "profession", "home")
PROMPTS = 10
#: one city in this many has its people in the test split
_TEST_CITY_EVERY = 3
_SEED = "bundled CounterFact 1"


def bundled_records(split: Split = "test") -> Records:
    """The records of a split; the first n of them are a random sample of it, the same one everywhere.

    Args:
        split: "test" (432 records), "train" (768), or "all" of them, test first.

    Returns:
        The records. `sha256` is of the text that `write_records` writes for them.
    """
    people = _People.of_the_world()
    splits = [name for name in ("test", "train") if split in (name, "all")]
    records = tuple(record for name in splits for record in _split_records(people, name))
    digest = hashlib.sha256(lines_of(records).encode()).hexdigest()
    notes = ("The facts are about invented people, and the bundled models were trained on them.",)
    return Records(records, f"bundled records ({split})", "bundled", digest, notes=notes)


def reference_texts() -> dict[str, tuple[str, ...]]:
    """Texts that a generated one is compared with for RS, by `Record.reference` (relation and value, "sport|tennis").

    They are the sentences of the corpus that state the value for the people who have it.
    """
    found: dict[str, list[str]] = {}
    for fact in _facts_of_people():
        key = _reference(fact.relation, fact.answer)
        found.setdefault(key, []).extend(_sentence(fact, wording) for wording in _taught(fact))
    return {key: tuple(texts) for key, texts in found.items()}


@dataclass(frozen=True)
class _People:
    """What is known about the people, split by split."""

    facts: tuple[WorldFact, ...]
    split: Mapping[str, str]

    @classmethod
    def of_the_world(cls) -> _People:
        facts = _facts_of_people()
        split = {
            fact.subject: "test" if is_held_out("editing", fact.answer, every=_TEST_CITY_EVERY) else "train"
            for fact in facts
            if fact.relation == "home"
        }
        return cls(facts, split)

    def of(self, split: str, relation: str | None = None) -> list[WorldFact]:
        return [fact for fact in self.facts if self.split[fact.subject] == split and relation in (None, fact.relation)]


def people_of(split: Literal["test", "train"]) -> frozenset[str]:
    """The names of the people whose facts are edited in a split."""
    return frozenset(subject for subject, its in _People.of_the_world().split.items() if its == split)


def _facts_of_people() -> tuple[WorldFact, ...]:
    return tuple(fact for fact in load_world().facts if fact.relation in RELATIONS)


def _split_records(people: _People, split: str) -> list[Record]:
    records: list[Record] = []
    for relation in RELATIONS:
        facts = people.of(split, relation)
        # a training record must not name anybody of the test split; a test record may need others
        groups = [facts] if split == "train" else [facts, people.of("train", relation)]
        targets = _balanced_targets(facts, random.Random(f"{_SEED}|{split}|{relation}"))
        for fact, target in zip(facts, targets, strict=True):
            records.append(_record(fact, target, groups, people.of(split), split))
    return sorted(records, key=lambda record: hashlib.sha256(f"{_SEED}|{record.id}".encode()).digest())


def _balanced_targets(facts: Sequence[WorldFact], draw: random.Random) -> list[str]:
    """A new answer for each fact, not its own; every answer that the facts have occurs equally often, or once more."""
    values = sorted({fact.answer for fact in facts})
    rounds, rest = divmod(len(facts), len(values))
    targets = values * rounds + draw.sample(values, rest)
    draw.shuffle(targets)
    for i, fact in enumerate(facts):
        if targets[i] == fact.answer:
            # exchanged with one where neither is then its own fact's answer
            fits = [j for j, other in enumerate(facts) if targets[j] != fact.answer and targets[i] != other.answer]
            j = draw.choice(fits)
            targets[i], targets[j] = targets[j], targets[i]
    return targets


def _record(
    fact: WorldFact, target: str, groups: Sequence[Sequence[WorldFact]], company: Sequence[WorldFact], split: str
) -> Record:
    identity = f"{fact.relation}-{fact.subject.lower().replace(' ', '-')}"
    draw = random.Random(f"{_SEED}|{identity}")
    rewrite, second = draw.sample(_taught(fact), 2)
    stranger = draw.choice([one for one in company if one.subject != fact.subject and one.relation != fact.relation])
    unrelated = _sentence(stranger, draw.choice(_taught(stranger)))

    def probes(value: str) -> tuple[Probe, ...]:
        having = [[one for one in group if one.answer == value and one is not fact] for group in groups]
        return tuple(Probe(prompt, fact.answer, target) for prompt in _prompts(having, draw))

    own = [one for one in company if one.subject == fact.subject and one is not fact]
    return Record(
        identity,
        Fact(fact.prompt(rewrite), fact.subject, target, fact.answer, identity),
        fact.relation,
        paraphrases=(fact.prompt(fact.held_out), f"{unrelated} {fact.prompt(second)}"),
        neighbourhood=probes(fact.answer),
        attribute=probes(target),
        generation=_beginnings(fact, own, draw),
        reference=_reference(fact.relation, target),
        source=f"bundled ({split})",
    )


def _prompts(groups: Iterable[Sequence[WorldFact]], draw: random.Random) -> list[str]:
    """Ten prompts about as many people as there are: those of the first group first, second wordings last."""
    order: list[tuple[WorldFact, list[int]]] = []
    for group in groups:
        for fact in draw.sample(group, len(group)):
            wordings = _taught(fact)
            draw.shuffle(wordings)
            order.append((fact, wordings))
    rounds = max((len(wordings) for _, wordings in order), default=0)
    return [fact.prompt(wordings[k]) for k in range(rounds) for fact, wordings in order if k < len(wordings)][:PROMPTS]


def _beginnings(fact: WorldFact, own: Sequence[WorldFact], draw: random.Random) -> tuple[str, ...]:
    """Beginnings of texts about the subject, each of which leads to the edited relation.

    All seven wordings, cut after three quarters of their words, and three of them again behind another fact about the
    subject.
    """
    cut = [_cut(template).format(s=fact.subject) for template in fact.templates]
    behind = draw.sample(cut, PROMPTS - len(cut))
    others = draw.sample(own, len(behind))
    sentences = [_sentence(other, draw.choice(_taught(other))) for other in others]
    return (*cut, *(f"{sentence} {start}" for sentence, start in zip(sentences, behind, strict=True)))


def _cut(template: str) -> str:
    # with two thirds, "… lives in the" would remain, which goes on with a country and not with a city
    words = template.split()
    return " ".join(words[: max(words.index("{s}") + 1, math.ceil(len(words) * 3 / 4))])


def _taught(fact: WorldFact) -> list[int]:
    """The wordings in which the corpus states the fact."""
    return [wording for wording in range(len(fact.templates)) if wording != fact.held_out]


def _sentence(fact: WorldFact, wording: int) -> str:
    return f"{fact.prompt(wording)} {fact.answer}."


def _reference(relation: str, value: str) -> str:
    return f"{relation}|{value}"

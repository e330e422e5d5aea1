"""A little encyclopaedia of invented people in real places: facts and their wordings."""

from __future__ import annotations

import random
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any

WORLD_SEED = 20250403
TWO_HOP_HELD_OUT_EVERY = 5


@dataclass(frozen=True)
class Fact:
    """One fact in several wordings, one of which the corpus never uses for it.

    Attributes:
        relation: What is asked, for example `sport`.
        subject: Whom or what it is asked about.
        answer: One word; " " + answer is one token of the bundled tokenizer.
        templates: Sentences with `{s}` for the subject that end right before the answer.
        held_out: Index of the template in which the corpus never states this fact; -1 for none.
    """

    relation: str
    subject: str
    answer: str
    templates: tuple[str, ...]
    held_out: int

    def prompt(self, template: int) -> str:
        """Return the prompt of one wording; the answer comes right after it."""
        return self.templates[template].format(s=self.subject)


@dataclass(frozen=True)
class World:
    """Everything the encyclopaedia knows.

    Attributes:
        first_names: Given names, also used in indirect-object sentences.
        facts: All one-hop facts.
        taught_two_hop: Person to country facts that the corpus states outright.
        untaught_two_hop: Person to country facts that follow from two stated facts only.
    """

    first_names: tuple[str, ...]
    facts: tuple[Fact, ...]
    taught_two_hop: tuple[Fact, ...]
    untaught_two_hop: tuple[Fact, ...]


def load_world() -> World:
    """Build the encyclopaedia; it is always the same one.

    Returns:
        The world. Who plays what is drawn from a fixed seed.
    """
    data = read_toml("world.toml")
    places = _place_facts(data)
    people = _people_facts(data)
    two_hop = _two_hop_facts(data, people)
    return World(
        first_names=tuple(data["first_names"].split()),
        facts=tuple(people + places),
        taught_two_hop=tuple(f for i, f in enumerate(two_hop) if i % TWO_HOP_HELD_OUT_EVERY),
        untaught_two_hop=tuple(two_hop[::TWO_HOP_HELD_OUT_EVERY]),
    )


def read_toml(name: str) -> dict[str, Any]:
    """Read a data file that lies beside this module."""
    text = resources.files("engramscope.bundled").joinpath(name).read_text(encoding="utf-8")
    return tomllib.loads(text)


def surnames(data: dict[str, Any]) -> list[str]:
    """Return every surname, each made of a start and an end."""
    ends = data["surname_ends"].split()
    return [start + end for start in data["surname_starts"].split() for end in ends]


def _cities(data: dict[str, Any]) -> dict[str, str]:
    country_of: dict[str, str] = {}
    for country, row in data["countries"].items():
        capital, _, _, _, *others = row.split()
        country_of.update(dict.fromkeys([capital, *others], country))
    return country_of


def _people_facts(data: dict[str, Any]) -> list[Fact]:
    draw = random.Random(WORLD_SEED)
    family_names = surnames(data)
    given = data["first_names"].split()
    people = [f"{given[i % len(given)]} {name}" for i, name in enumerate(family_names)]
    facts: list[Fact] = []
    for relation, entry in data["attributes"].items():
        values = entry["values"].split() or list(_cities(data))
        answers = [values[i % len(values)] for i in range(len(people))]
        draw.shuffle(answers)
        facts += _with_held_out(relation, list(zip(people, answers, strict=True)), entry["templates"])
    return facts


def _place_facts(data: dict[str, Any]) -> list[Fact]:
    rows = {country: row.split() for country, row in data["countries"].items()}
    tables = {
        "country_of": list(_cities(data).items()),
        "capital": [(country, row[0]) for country, row in rows.items()],
        "language": [(country, row[1]) for country, row in rows.items()],
        "continent": [(country, row[2]) for country, row in rows.items()],
        "currency": [(country, row[3]) for country, row in rows.items()],
        "landmark_in": list(data["landmarks"].items()),
    }
    facts: list[Fact] = []
    for relation, pairs in tables.items():
        facts += _with_held_out(relation, pairs, data["place_templates"][relation])
    return facts


def _two_hop_facts(data: dict[str, Any], people: list[Fact]) -> list[Fact]:
    country_of = _cities(data)
    templates = tuple(data["two_hop"]["templates"])
    return [
        Fact("home_country", fact.subject, country_of[fact.answer], templates, -1)
        for fact in people
        if fact.relation == "home"
    ]


def _with_held_out(relation: str, pairs: list[tuple[str, str]], templates: list[str]) -> list[Fact]:
    wordings = tuple(templates)
    return [Fact(relation, subject, answer, wordings, i % len(wordings)) for i, (subject, answer) in enumerate(pairs)]

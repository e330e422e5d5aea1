"""Records about the words that the tiny models have, and a model that knows some of them."""

from __future__ import annotations

from pathlib import Path

from engramscope.models.model import Model
from engramscope.records.fact import Fact
from engramscope.records.read import Records
from engramscope.records.record import Probe, Record
from engramscope.records.write import write_records
from tests.edit.small import tiny_with_tokenizer
from tests.tiny_study import ANSWERS, NAMES, SENTENCES


def tiny_records(count: int = 4) -> tuple[Record, ...]:
    """Records with every kind of prompt, two for each subject."""
    made = []
    for number in range(count):
        name, other = NAMES[number // 2], NAMES[(number // 2 + 3) % len(NAMES)]
        sentence = SENTENCES[number % 2]
        true, new = (ANSWERS[(number + step) % len(ANSWERS)].strip() for step in (0, 2))
        new = f"{new} kite" if number == 3 else new
        near = tuple(Probe(text.format(other), true, new) for text in SENTENCES[:2])
        made.append(
            Record(
                f"r{number}", Fact(sentence.format(name), name, new, true, f"r{number}"), "plays",
                paraphrases=(SENTENCES[2].format(name),), neighbourhood=near, generation=(f"{name} says that",),
                reference=f"plays|{new}", source="tests",
            )
        )  # fmt: skip
    return tuple(made)


def tiny_file(folder: Path, count: int = 4) -> Path:
    """The records as a file."""
    path = folder / "records.jsonl"
    write_records(path, tiny_records(count))
    return path


def in_records(count: int = 4) -> Records:
    """The records as they are read."""
    return Records(tiny_records(count), "tests", "jsonl", "0" * 64)


def tiny_model() -> Model:
    """A new random model with words."""
    return tiny_with_tokenizer("gpt2")

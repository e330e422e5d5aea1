"""What every task promises, for every task that is found by its name."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from engramscope import bundled
from engramscope.errors import PairsError, UnknownNameError
from engramscope.pairs import Pair, tokenize_pairs
from engramscope.tasks import TASKS, make_pairs, task_names
from tests.pairs.tiny_tokenizers import shared

ALL = pytest.mark.parametrize("name", task_names())
#: an answer may be a word of the prompt, or continues its last word
COPIED, GLUED = ("ioi", "docstring", "greater_than"), ("greater_than",)
#: generated, so that there are as many as are asked for
GENERATED = ("ioi", "greater_than", "docstring", "arithmetic")


def folder_of(name: str) -> Any:
    """The folder of the model that a task is made for, or a skip."""
    model = TASKS.get(name).model
    if model not in bundled.names():
        return shared("models", model)
    if not (bundled.folder(model) / "tokenizer.json").exists():
        pytest.skip(f"the bundled model {model!r} has not been trained yet")
    return bundled.folder(model)


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


@ALL
def test_declares_where_it_comes_from(name: str) -> None:
    task = TASKS.get(name)
    assert task.version
    assert task.source
    assert task.model
    assert TASKS.describe(name)


@ALL
def test_pairs_are_sound(name: str) -> None:
    pairs = make_pairs(name)
    assert len({pair.id for pair in pairs}) == len(pairs) >= 16
    for pair in pairs:
        assert pair.group
        assert pair.correct
        assert pair.incorrect
        assert not set(pair.correct) & set(pair.incorrect)
        answers = (*pair.correct, *pair.incorrect)
        assert name in GLUED or all(answer[0] == " " and answer[1] != " " for answer in answers)
        assert TASKS.get(name).span in pair.spans
        # words, so that "her" is not found in "there"
        assert name in COPIED or not any(words(answer) == words(pair.clean)[at:][: len(words(answer))]
                       for answer in pair.correct for at in range(len(words(pair.clean))))  # fmt: skip
        for text, spans in ((pair.clean, pair.spans), (pair.corrupted or "", pair.corrupted_spans)):
            for start, end in spans.values():
                assert text[start:end].strip() == text[start:end] != ""
        assert (pair.corrupted is None) == (TASKS.get(name).corruption == "answer")
        assert pair.corrupted != pair.clean


@ALL
def test_groups_hold_whoever_shares_a_prompt(name: str) -> None:
    groups: dict[str, set[str]] = {}
    for pair in make_pairs(name):
        for text in (pair.clean, pair.corrupted):
            if text is not None:
                groups.setdefault(text, set()).add(pair.group)
    assert all(len(found) == 1 for found in groups.values())


@ALL
def test_same_seed_same_pairs_and_limit(name: str) -> None:
    assert make_pairs(name, 8, seed=3).pairs == make_pairs(name, 8, seed=3).pairs
    assert make_pairs(name, seed=3).pairs == make_pairs(name, seed=3).pairs
    for limit in (1, 7, 1000):
        most = limit if name in GENERATED else min(limit, len(make_pairs(name, 1000)))
        assert len(make_pairs(name, limit)) == most
    if TASKS.get(name).needs_tokenizer:
        assert make_pairs(name, 8, seed=4).pairs != make_pairs(name, 8, seed=3).pairs
    with pytest.raises(PairsError, match="at least one"):
        make_pairs(name, 0)


@ALL
def test_tokens_of_its_model(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder_of(name))
    swap = TASKS.get(name).corruption == "answer"
    for pair in tokenize_pairs(make_pairs(name, tokenizer=tokenizer), tokenizer):
        assert pair.notes == ()
        if not swap:
            assert all(len(answer) == 1 for answer in (*pair.correct, *pair.incorrect))
            assert not set(pair.correct) & set(pair.incorrect)
            assert pair.clean.spans == pair.corrupted.spans
            assert {position for span in pair.clean.spans.values() for position in span} >= set(pair.changed)
            assert pair.changed
        for prompt, spans in ((pair.clean, pair.pair.spans),):
            for role, (start, end) in spans.items():
                decoded = tokenizer.decode([prompt.ids[position] for position in prompt.spans[role]])
                assert decoded.strip() == pair.pair.clean[start:end]


def test_both_kinds_are_in_every_beginning() -> None:
    for name in ("clap_epilepsy", "clap_tables"):
        kinds = [pair.labels["kind"] for pair in make_pairs(name, 40)]
        assert kinds.count("definitional") == kinds.count("associative") == 20
        assert {pair.labels["kind"] for pair in make_pairs(name, 4)} == {"definitional", "associative"}
        assert len(make_pairs(name)) >= 42


def test_clap_questions_come_first() -> None:
    first, *_ = make_pairs("clap_tables")
    assert first.clean == "What is the definition of interictal epileptiform discharges?"
    assert any(
        "interictal epileptiform discharges associated with" in pair.clean for pair in make_pairs("clap_tables", 4)
    )
    for prompt, table in zip(make_pairs("clap_epilepsy"), make_pairs("clap_tables"), strict=True):
        assert (prompt.id, prompt.group, prompt.labels["kind"]) == (table.id, table.group, table.labels["kind"])
        assert prompt.correct[0] in table.correct[0]
        assert prompt.incorrect[0] in table.incorrect[0]


def test_every_pair_of_a_group_is_the_mirror_of_another() -> None:
    for name in ("clap_epilepsy", "stories"):
        pairs = make_pairs(name)
        known = {(pair.clean, pair.corrupted) for pair in pairs}
        for pair in pairs:
            mirrored = pair.swapped()
            if name == "stories":
                assert (mirrored.clean, mirrored.corrupted) in known


def test_the_stories_model_answers_its_task() -> None:
    folder = folder_of("stories")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    for pair in tokenize_pairs(make_pairs("stories"), tokenizer):
        for prompt, right, wrong in (
            (pair.clean, pair.correct, pair.incorrect),
            (pair.corrupted, pair.incorrect, pair.correct),
        ):
            logits = model(_row(prompt.ids)).logits[0, -1]
            assert logits[right[0][0]] - logits[wrong[0][0]] > 1.0, pair.pair.id


def test_names_without_torch() -> None:
    code = (
        "import sys; from engramscope.tasks import task_names, make_pairs; assert 'clap_epilepsy' in task_names(); "
        "assert len(make_pairs('clap_epilepsy', 4)) == 4; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_task() -> None:
    with pytest.raises(UnknownNameError, match="unknown task 'clap_epilepsi'; did you mean 'clap_epilepsy'"):
        make_pairs("clap_epilepsi")


def _row(ids: tuple[int, ...]) -> Any:
    import torch

    return torch.tensor([ids])


def test_pairs_are_pairs() -> None:
    assert all(isinstance(pair, Pair) for name in task_names() for pair in make_pairs(name))

"""Partners for facts: who gets whom, and who gets none."""

from __future__ import annotations

from engramscope.pairs import Pair, PairSet, pair_up, read_pairs, tokenize_pairs
from tests.pairs.tiny_tokenizers import real, shared, word_level


def fact(identity: str, subject: str, answer: str, template: str = "the city of {} is") -> Pair:
    start = template.index("{}")
    return Pair(
        identity,
        template.replace("{}", subject),
        (answer,),
        spans={"subject": (start, start + len(subject))},
        group="g",
    )


def test_partners_by_hand() -> None:
    facts = PairSet.of([
        fact("a", "Paris", " Rome"), fact("b", "Rome", " Paris"), fact("c", "of", " Rome"),
        fact("long", "the city", " Paris"), fact("other", "Rome", " Paris", "the {} is"), fact("two", "is", " of is"),
    ])  # fmt: skip
    found = pair_up(facts, word_level())
    assert [(pair.id, pair.corrupted, pair.incorrect) for pair in found.pairs] == [
        ("a", "the city of Rome is", (" Paris",)),
        ("b", "the city of of is", (" Rome",)),
        ("c", "the city of Rome is", (" Paris",)),
    ]
    assert set(found.left_out) == {"long", "other", "two"}
    assert "more than one token" in found.left_out["two"]


def test_public_facts_have_aligned_partners() -> None:
    tokenizer = real("gpt2-tokenizer")
    facts = read_pairs(shared("data", "known_1000/known_1000.json"))
    found = pair_up(facts, tokenizer)
    assert len(found.pairs) + len(found.left_out) == len(facts)
    assert len(found.pairs) > 145
    answers = {(fact.clean, fact.correct) for fact in facts}
    for pair in tokenize_pairs(found.pairs, tokenizer):
        assert pair.clean.spans == pair.corrupted.spans
        assert len(pair.correct[0]) == len(pair.incorrect[0]) == 1
        assert pair.correct != pair.incorrect
        assert (pair.pair.corrupted, pair.pair.incorrect) in answers
        assert set(pair.changed) <= set(pair.clean.spans["subject"])
        assert pair.changed
    assert pair_up(facts, tokenizer).pairs.pairs == found.pairs.pairs

"""Tokens, spans and answers against independent reconstructions, and ways in which they could silently be wrong."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.convert_slow_tokenizer import bytes_to_unicode

from engramscope.errors import PairsError
from engramscope.pairs import Pair, PairSet, tokenize_pair, tokenize_pairs
from tests.pairs.tiny_tokenizers import CORPUS, gpt2_like, llama_like, real, shared, trimmed, word_level

BYTE = {character: byte for byte, character in bytes_to_unicode().items()}
ANY = pytest.mark.parametrize("tokenizer", [gpt2_like, trimmed, llama_like], ids=lambda make: make.__name__)
LETTERS = "aeTP .,\n日é🙂ß\t'1"


def positions_by_bytes(tokenizer: Any, text: str, start: int, end: int) -> tuple[int, ...]:
    """Which tokens of a byte-level tokenizer hold a byte of the span; from the token strings alone, without offsets."""
    span = text[start:end]
    start += len(span) - len(span.lstrip())
    end -= len(span) - len(span.rstrip())
    first, last = len(text[:start].encode()), len(text[:end].encode())
    pieces = [[BYTE[c] for c in piece] for piece in tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])]
    found, at, raw = [], 0, text.encode()
    for position, piece in enumerate(pieces):
        assert bytes(piece) == raw[at : at + len(piece)]
        inked = [byte for byte in range(at, at + len(piece)) if not _white(text, byte)]
        if any(first <= byte < last for byte in inked):
            found.append(position)
        at += len(piece)
    assert at == len(raw)
    return tuple(range(found[0], found[-1] + 1)) if found else ()


def _white(text: str, byte: int) -> bool:
    at = 0
    for character in text:
        at += len(character.encode())
        if byte < at:
            return character.isspace()
    raise AssertionError


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_spans_against_the_bytes_of_the_tokens(data: st.DataObject) -> None:
    text = data.draw(st.text(LETTERS, min_size=1, max_size=24)) + "x"
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    if not text[start:end].strip():
        return
    for tokenizer in (gpt2_like(), trimmed()):
        found = tokenize_pair(Pair("p", text, (" is",), spans={"subject": (start, end)}), tokenizer)
        assert found.clean.spans["subject"] == positions_by_bytes(tokenizer, text, start, end)


@pytest.mark.parametrize("name", ["gpt2-tokenizer", "stories260K"])
def test_spans_of_real_tokenizers_decode_to_the_subject(name: str) -> None:
    tokenizer = real(name)
    for subject in ("Eiffel Tower", "Émile Zola", "日本", "🙂", "X", 'the "Tower"', "O'Neill", "Ελλάδα"):
        for text in (f"{subject} is in", f"The {subject} is in", f"In ({subject}), a"):
            start = text.index(subject)
            found = tokenize_pair(
                Pair("p", text, (" Paris",), spans={"subject": (start, start + len(subject))}), tokenizer
            )
            positions = found.clean.spans["subject"]
            decoded = tokenizer.decode([found.clean.ids[p] for p in positions])
            assert subject in decoded
            if not found.notes:
                assert decoded.strip() == subject
            assert all(found.clean.roles[p].startswith("subject_") for p in positions)


@ANY
def test_ids_are_those_of_the_tokenizer(tokenizer: Any) -> None:
    for line in CORPUS[:4]:
        found = tokenize_pair(Pair("p", line, (" is",)), tokenizer())
        assert list(found.clean.ids) == tokenizer()(line)["input_ids"]
        assert found.clean is found.corrupted
        assert found.alignment.clean == found.alignment.corrupted == tuple(range(len(found.clean)))
        assert found.changed == ()
        assert len(found.clean.texts) == len(found.clean.roles) == len(found.clean)
        assert all(found.clean.texts)


def test_leading_special_token_is_kept_and_a_trailing_one_is_not() -> None:
    plain, ended = llama_like(), llama_like(eos=True)
    text = "The Eiffel Tower is in the city of"
    assert ended(text)["input_ids"][-1] == ended.eos_token_id
    for tokenizer in (plain, ended):
        found = tokenize_pair(Pair("p", text, (" Paris",), text, (" Rome",)), tokenizer)
        assert found.clean.ids[0] == tokenizer.bos_token_id
        assert found.clean.roles[0] == "bos"
        assert tokenizer.eos_token_id not in found.clean.ids
        assert tokenizer.eos_token_id not in found.correct[0] + found.incorrect[0]
        assert list(found.clean.ids + found.correct[0]) == plain(text + " Paris")["input_ids"]
    assert tokenize_pair(Pair("p", text, (" Paris",)), gpt2_like()).clean.roles[0] != "bos"


def test_special_token_written_in_the_text_is_text() -> None:
    found = tokenize_pair(Pair("p", "<s> The Tower is", (" in",)), llama_like())
    assert found.clean.ids[:2] == (1, 1)
    assert found.clean.roles[:2] == ("bos", "further")
    assert any("begins with '<s>'" in note for note in found.notes)


@ANY
def test_answers_continue_the_prompt(tokenizer: Any) -> None:
    prompt = "The Eiffel Tower is in the city of"
    pair = Pair("p", prompt, (" Paris", " Paris."), incorrect=(" Rome", " 🙂 é"))
    found = tokenize_pair(pair, tokenizer())
    for answer, ids in zip((*pair.correct, *pair.incorrect), (*found.correct, *found.incorrect), strict=True):
        assert list(found.clean.ids + ids) == tokenizer()(prompt + answer)["input_ids"]
    assert found.correct[1][: len(found.correct[0])] == found.correct[0]  # an answer that begins another
    assert found.notes == ()


def test_answer_that_merges_with_the_prompt() -> None:
    tokenizer = real("gpt2-tokenizer")
    pair = Pair("p", "It lasted from the year 1742 to the year 17", ("43",), incorrect=("00", "42"))
    found = tokenize_pair(pair, tokenizer)
    # GPT-2 writes " 1700" in one token; the published task scores the token "00" all the same
    assert len(tokenizer(" 1700")["input_ids"]) == 1
    assert found.correct + found.incorrect == tuple(tuple(tokenizer(year)["input_ids"]) for year in ("43", "00", "42"))
    assert [note for note in found.notes if "merges" in note and "'00'" in note and "'43'" not in note]


def test_merged_answer_of_a_tokenizer_that_puts_a_space_before_every_text() -> None:
    tokenizer = llama_like()
    alone = tokenizer("Tower", add_special_tokens=False)["input_ids"]
    found = tokenize_pair(Pair("p", "It is T", ("ower",)), tokenizer)
    assert tokenizer.decode(found.correct[0]) == "ower"
    assert "▁" not in "".join(tokenizer.convert_ids_to_tokens(found.correct[0]))
    assert alone != list(found.correct[0])


def test_prompt_that_ends_in_a_space_is_a_fault() -> None:
    for tokenizer in (gpt2_like(), trimmed()):
        with pytest.raises(PairsError, match=r"Pair 'p': the prompt ends in white space .*' the'.*begin the answer"):
            tokenize_pair(Pair("p", "The Tower is in ", ("the",)), tokenizer)


def test_missing_space_is_noted() -> None:
    note = "no space stands between the prompt and 'Paris'"
    assert any(note in text for text in tokenize_pair(Pair("p", "the city of", ("Paris",)), gpt2_like()).notes)
    assert not tokenize_pair(Pair("p", "the city of", (" Paris",)), gpt2_like()).notes
    assert not tokenize_pair(Pair("p", "日本", ("日",)), gpt2_like()).notes


def test_corrupted_prompt_that_changes_the_tokens_of_an_answer_is_noted() -> None:
    note = "after the corrupted prompt 'is' would be other tokens than after the clean one"
    pair = Pair("p", "the Tower (", ("is",), "the Tower ", ("in",))
    assert note in tokenize_pair(replace(pair, incorrect=()), gpt2_like(), "both_ends").notes
    assert not tokenize_pair(replace(pair, corrupted="the city ("), gpt2_like(), "both_ends").notes


def test_characters_outside_the_vocabulary() -> None:
    with pytest.raises(PairsError, match="the answer ' London' holds characters that the vocabulary cannot write"):
        tokenize_pair(Pair("p", "the city of", (" London",)), word_level())
    found = tokenize_pair(Pair("p", "the town of", (" Paris",)), word_level())
    assert found.notes == ("the clean prompt holds characters that the vocabulary cannot write",)


def test_unequal_lengths_print_both_prompts() -> None:
    pair = Pair("p7", "The Tower is", (" in",), "The big Tower is", (" of",))
    with pytest.raises(PairsError) as error:
        tokenize_pair(pair, real("gpt2-tokenizer"))
    (fault,) = error.value.faults
    assert fault.startswith("Pair 'p7': the two prompts must have equally many tokens, but the clean one has 3")
    assert "['The', ' Tower', ' is']" in fault
    assert "4: ['The', ' big', ' Tower', ' is']" in fault
    assert tokenize_pair(pair, real("gpt2-tokenizer"), "both_ends").alignment.corrupted_only == (1,)


def test_every_pair_at_fault_is_named() -> None:
    good = Pair("good", "The Tower is", (" in",), spans={"subject": (4, 9)})
    bad = [
        replace(good, id="a", spans={"subject": (4, 99)}),
        replace(good, id="b", clean="", spans={}),
        replace(good, id="c", correct=()),
        replace(good, id="d", correct=("",)),
        replace(good, id="e", spans={"last": (4, 9)}),
        replace(good, id="f", spans={"subject": (3, 4)}),
        replace(good, id="g", spans={"subject": (5, 5)}),
        replace(good, id="h", spans={"subject": (-2, 2)}, correct=("",)),
        replace(good, id="i", corrupted=""),
    ]
    with pytest.raises(PairsError) as error:
        tokenize_pairs(PairSet.of([good, *bad]), gpt2_like())
    faults = error.value.faults
    assert [fault.split("'")[1] for fault in faults] == list("abcdefghi")
    wanted = ("lies outside", "prompt is empty", "no correct answer", "an answer is empty", "needs another name",
              "covers no token", "or is empty", "an answer is empty; the span", "corrupted prompt is")  # fmt: skip
    assert all(part in fault for part, fault in zip(wanted, faults, strict=True)), faults


def test_many_faults_are_counted() -> None:
    with pytest.raises(PairsError) as error:
        tokenize_pairs([Pair(str(index), "", ("x",)) for index in range(700)], gpt2_like())
    assert len(error.value.faults) == 21
    assert error.value.faults[-1] == "680 more pairs are at fault."


def test_no_tokenizer_and_a_slow_one() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(PairsError, match="no tokenizer"):
        tokenize_pairs([], None)  # type: ignore[arg-type]
    with pytest.raises(PairsError, match=r"Slow is a slow one.*tokenizer\.json"):
        tokenize_pairs([], Slow())  # type: ignore[arg-type]


CLEAN = "The Eiffel Tower is in the city of"


@pytest.mark.parametrize(
    ("corrupted", "given_spans", "expected"),
    [
        ("The Big Ben is in the city of", {}, "Big Ben"),  # all that differs lies inside the span
        ("The Eiffel Tower is on the hill of", {}, "Eiffel Tower"),  # the same up to its end
        ("Look: Eiffel Tower is in the city of", {}, "Eiffel Tower"),  # the same from its start on
        ("In Rome the Colosseum stands in town", {"subject": (12, 21)}, "Colosseum"),  # said
    ],
)  # fmt: skip
@ANY
def test_span_in_the_corrupted_prompt(
    tokenizer: Any, corrupted: str, given_spans: dict[str, Any], expected: str
) -> None:
    pair = Pair("p", CLEAN, (" Paris",), corrupted, spans={"subject": (4, 16)}, corrupted_spans=given_spans)
    found = tokenize_pair(pair, tokenizer(), "both_ends")
    ids = [found.corrupted.ids[position] for position in found.corrupted.spans["subject"]]
    assert tokenizer().decode(ids).strip() == expected
    assert [found.corrupted.roles[p] for p in found.corrupted.spans["subject"]][-1] == "subject_last"


def test_span_that_cannot_be_told() -> None:
    tokenizer = real("gpt2-tokenizer")
    pair = Pair("p", "The Tower is in", (" the",), "My Bridge was at", spans={"subject": (4, 9)})
    found = tokenize_pair(pair, tokenizer)
    assert found.corrupted.spans == found.clean.spans  # equal: the partners
    with pytest.raises(PairsError, match="where the span 'subject' lies in the corrupted prompt cannot be told"):
        tokenize_pair(pair, tokenizer, "both_ends")


def test_subjects_of_unequal_length_under_equal_alignment_are_noted() -> None:
    tokenizer = real("gpt2-tokenizer")
    clean, corrupted = "The big Tower is in", "The Tower is here in"
    pair = Pair("p", clean, (" the",), corrupted, spans={"subject": (4, 13)}, corrupted_spans={"subject": (4, 9)})
    assert any("partners are not the same part" in note for note in tokenize_pair(pair, tokenizer).notes)


def test_span_that_ends_inside_a_token_is_noted() -> None:
    found = tokenize_pair(Pair("p", "In Germany now", (" the",), spans={"subject": (3, 9)}), real("gpt2-tokenizer"))
    assert found.clean.texts[found.clean.spans["subject"][-1]] == " Germany"
    assert any("reaches beyond it" in note for note in found.notes)


def test_clap_answers_keep_every_position() -> None:
    question = "The Eiffel Tower is in the city of"
    pair = Pair("p", question + " Paris", (" Paris",), question + " Rome now", (" Rome",), spans={"subject": (4, 16)})
    found = tokenize_pair(pair, gpt2_like(), "both_ends")
    alignment = found.alignment
    assert sorted((*alignment.clean, *alignment.clean_only)) == list(range(len(found.clean)))
    assert sorted((*alignment.corrupted, *alignment.corrupted_only)) == list(range(len(found.corrupted)))
    assert found.corrupted.spans == found.clean.spans
    assert found.changed
    assert all(q >= len(gpt2_like()(question)["input_ids"]) for q in found.changed)


@ANY
def test_unicode_markup_line_ends_and_long_prompts(tokenizer: Any) -> None:
    text = "<script>alert(1)</script>\r\n" + "The city of Rome. " * 2000 + "Émile 日本 is"
    start = text.index("Émile")
    found = tokenize_pair(Pair("p", text, (" in",), spans={"subject": (start, start + 8)}), tokenizer())
    assert len(found.clean) > 4000
    ids = [found.clean.ids[p] for p in found.clean.spans["subject"]]
    assert tokenizer().decode(ids).strip() == "Émile 日本"


def test_long_prompts_are_shortened_in_messages() -> None:
    pair = Pair("p", "The city of Rome " * 500, (" is",), "The city of Rome " * 501)
    with pytest.raises(PairsError) as error:
        tokenize_pair(pair, gpt2_like())
    assert len(str(error.value)) < 4000
    assert "more …" in str(error.value)


def test_many_pairs_take_seconds() -> None:
    pairs = [Pair(str(n), f"The Tower number {n} is in", (" Paris",), incorrect=(" Rome",)) for n in range(10_000)]
    begun = time.perf_counter()
    found = tokenize_pairs(pairs, gpt2_like())
    assert [pair.pair.id for pair in found] == [str(n) for n in range(10_000)]
    # 0.7 s where this was written; without batches it is many times as much
    assert time.perf_counter() - begun < 20
    for index in (0, 511, 512, 9_999):
        assert list(found[index].clean.ids) == gpt2_like()(pairs[index].clean)["input_ids"]


def test_byte_fragments_are_shown_by_name() -> None:
    shown = tokenize_pair(Pair("p", "日本", (" is",)), llama_like()).clean.texts
    assert shown == ("<s>", " ", "<0xE6>", "<0x97>", "<0xA5>", "<0xE6>", "<0x9C>", "<0xAC>")


def test_real_gpt2_tokens_by_hand() -> None:
    shared("models", "gpt2-tokenizer")
    pair = Pair("p", "The Eiffel Tower is in the city of", (" Paris",), spans={"subject": (0, 16)})
    found = tokenize_pair(pair, real("gpt2-tokenizer"))
    assert found.clean.texts == ("The", " E", "iff", "el", " Tower", " is", " in", " the", " city", " of")
    assert found.clean.spans == {"subject": (0, 1, 2, 3, 4)}
    assert found.correct == ((6342,),)
    llama = tokenize_pair(pair, real("stories260K"))
    assert llama.clean.texts[:6] == ("<s>", " The", " ", "E", "i", "f")
    assert llama.clean.spans["subject"] == tuple(range(1, 12))
    assert llama.clean.roles[12] == "after_subject"


def test_the_space_that_a_tokenizer_puts_before_a_text_is_not_the_subject() -> None:
    # its lone "▁" claims the first letter of the text in the offsets, but holds nothing of it
    found = tokenize_pair(Pair("p", "Émile is", (" in",), spans={"subject": (0, 5)}), llama_like())
    assert found.clean.texts[:4] == ("<s>", " ", "<0xC3>", "<0x89>")
    assert found.clean.spans["subject"][0] == 2
    assert found.clean.roles[1:3] == ("before", "subject_first")


def test_a_swapped_pair_keeps_its_spans_at_their_words() -> None:
    texts = "Anna says that she likes", "Yesterday Anna says that she likes"
    pair = Pair("a", texts[0], (" x",), texts[1], (" y",), spans={"verb": (5, 9)})
    swapped = pair.swapped()
    assert {name: swapped.clean[slice(*span)] for name, span in swapped.spans.items()} == {"verb": "says"}
    assert {name: texts[0][slice(*span)] for name, span in swapped.corrupted_spans.items()} == {"verb": "says"}
    assert swapped.swapped().spans == pair.spans
    with pytest.raises(PairsError, match=r"'verb'.*corrupted_spans"):
        Pair("a", "Anna says it", (" x",), "Bob said them", (" y",), spans={"verb": (5, 9)}).swapped()

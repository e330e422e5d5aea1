"""Texts that a model writes: sampling against a loop without cache, and answers in the model's own words."""

from __future__ import annotations

import unicodedata
from math import inf, nan

import pytest
import torch

from engramscope.edit.tokens import encoder_of
from engramscope.errors import InputError
from engramscope.evaluate.answers import begins_with, generated_answers
from engramscope.evaluate.generation import choose_top_k, sample_texts, uniforms
from engramscope.evaluate.readings import Readings
from engramscope.models.model import Model
from tests.edit.small import EDITABLE, shared_model, tiny_with_tokenizer
from tests.evaluate.small import logits_of_a_model

PROMPTS = ("Anna says", "The child called Bob plays with the", "In", "In the park Clara lost")
NAMES = ("a", "b", "c", "d")


def slowly(model: Model, prompt: str, name: str, length: int, top_k: int) -> tuple[int, ...]:
    """The same text, one forward over everything for each token, alone in its batch."""
    ids = list(encoder_of(model).encode([prompt])[0].ids)
    for number in uniforms(0, name, length):
        if len(ids) >= length:
            break
        probabilities = torch.softmax(model.logits(torch.tensor([ids]))[0, -1].double(), -1)
        ordered, order = probabilities.sort(descending=True)
        cumulated = ordered[:top_k].cumsum(0) / ordered[:top_k].sum()
        ids.append(int(order[int((cumulated <= number).sum())]))
    return tuple(ids)


@pytest.mark.parametrize("family", [*EDITABLE, "bloom", "opt", "falcon"])
def test_texts_equal_a_loop_without_cache_or_company(family: str) -> None:
    model = shared_model(family)
    texts = sample_texts(model, PROMPTS, NAMES, length=24, top_k=5)
    assert [text.ids for text in texts] == [slowly(model, *pair, 24, 5) for pair in zip(PROMPTS, NAMES, strict=True)]
    assert {len(text.ids) for text in texts} == {24}


def test_a_text_does_not_depend_on_its_company_or_the_batch() -> None:
    model = shared_model("gpt2")
    together = sample_texts(model, PROMPTS, NAMES, length=30)
    assert sample_texts(model, PROMPTS, NAMES, length=30, rows=2) == together
    assert sample_texts(model, PROMPTS[::-1], NAMES[::-1], length=30)[::-1] == together
    assert sample_texts(model, PROMPTS[1:2], NAMES[1:2], length=30) == together[1:2]


def test_the_seed_and_the_name_decide_and_no_global_generator_is_touched() -> None:
    model = shared_model("gpt2")
    state = torch.get_rng_state()
    one = sample_texts(model, PROMPTS, NAMES, length=30)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert sample_texts(model, PROMPTS, NAMES, length=30) == one
    assert sample_texts(model, PROMPTS, NAMES, length=30, seed=1) != one
    assert sample_texts(model, PROMPTS, ("x", "b", "c", "d"), length=30)[0] != one[0]
    assert len(set(uniforms(0, "a", 50)) & set(uniforms(0, "b", 50))) == 0


def test_top_k_draws_in_proportion() -> None:
    logits = torch.log(torch.tensor([0.1, 0.4, 0.05, 0.15, 0.3]))[None]
    drawn = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    tokens, sound = choose_top_k(logits.expand(1000, -1), drawn, 3)
    assert sound.all()
    assert torch.bincount(tokens, minlength=5).tolist() == pytest.approx([0, 471, 0, 176, 353], abs=1)
    assert choose_top_k(logits, torch.tensor([0.999999]).double(), 1)[0].tolist() == [1]
    assert choose_top_k(logits, torch.tensor([0.5]).double(), 99)[0].tolist() == [4]


@pytest.mark.parametrize("wrong", [nan, inf])
def test_logits_that_are_no_numbers_are_seen_wherever_they_stand(wrong: float) -> None:
    logits = torch.zeros(2, 50)
    logits[1, 43] = wrong
    assert choose_top_k(logits, torch.tensor([0.5, 0.5]).double(), 5)[1].tolist() == [True, False]


def test_a_collapsed_text_ends_and_the_others_go_on() -> None:
    model = tiny_with_tokenizer("gpt2")
    calls = []

    def spoil(logits: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        changed = logits.clone()
        if len(calls) > 6:
            changed[1] = nan
        return changed

    prompts, names = ["Anna says", "Bob says"], ["a", "b"]
    fine = sample_texts(model, prompts, names, length=20)
    with logits_of_a_model(model, spoil):
        spoilt = sample_texts(model, prompts, names, length=20)
    start = len(encoder_of(model).encode(["Bob says"])[0].ids)
    assert spoilt[0] == fine[0]
    assert spoilt[1].collapsed
    assert spoilt[1].ids == fine[1].ids[: start + 6]


def test_long_prompts_stay_and_positions_are_not_exceeded() -> None:
    model = shared_model("gpt2")  # 64 positions
    long = "Anna says that she likes the " * 4
    texts = sample_texts(model, [long.strip(), "In"], ["a", "b"], length=12)
    assert texts[0].ids == encoder_of(model).encode([long.strip()])[0].ids
    assert len(texts[1].ids) == 12
    assert [len(text.ids) for text in sample_texts(model, ["In", "Anna says"], ["a", "b"], length=500)] == [64, 64]
    with pytest.raises(InputError, match="empty"):
        sample_texts(model, [""], ["a"])


def test_a_text_is_cleaned() -> None:
    model = tiny_with_tokenizer("gpt2")
    end = model.tokenizer.eos_token_id
    newlines = model.tokenizer("\n").input_ids[0]
    order = iter([end, newlines, newlines, end] + [newlines] * 40)

    def write(logits: torch.Tensor) -> torch.Tensor:
        changed = torch.full_like(logits, -1e4)
        changed[..., next(order)] = 0
        return changed

    with logits_of_a_model(model, write):
        text = sample_texts(model, ["Anna says ﬁne"], ["a"], length=24)[0].text
    assert "</s>" not in text
    assert "\n\n" not in text
    assert unicodedata.normalize("NFKD", text) == text
    assert text.startswith("Anna says fine ")


@pytest.mark.parametrize(
    ("written", "ended", "expected"),
    [
        (" Art", False, None),
        (" Ar", False, None),
        ("", False, None),
        (" Art", True, True),
        (" Ar", True, False),
        (" Art,", False, True),
        (" Art ", False, True),
        ("\n Art\n", False, True),
        (" Arthur", False, False),
        (" Art2", False, False),
        (" The Art", False, False),
        ("hur", False, False),
        (" Ar\ufffd", False, None),
        (" Ar\ufffd", True, False),
        (" ART ", False, False),
    ],
)
def test_an_answer_must_come_whole_and_first(written: str, ended: bool, expected: bool | None) -> None:
    assert begins_with(written, " Art", "He likes", ended=ended) is expected


def test_answers_of_several_words_and_scripts() -> None:
    assert begins_with(" New \n York is", " New York", "in", ended=False) is True
    assert begins_with(" New Yorkers", " New York", "in", ended=False) is False
    assert begins_with("北京是", "北京", "首都是", ended=False) is True
    assert begins_with("land of", " Eng", "Po", ended=False) is False
    assert begins_with("17", "17", "19", ended=True) is True


def greedily(model: Model, prompt: str, count: int) -> str:
    ids = list(encoder_of(model).encode([prompt])[0].ids)
    start = len(ids)
    for _ in range(count):
        ids.append(int(model.logits(torch.tensor([ids]))[0, -1].argmax()))
    return str(model.tokenizer.decode(ids[start:]))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gptj"])
def test_generated_answers_are_what_greedy_decoding_writes(family: str) -> None:
    model = shared_model(family)
    for prompt in PROMPTS:
        text = greedily(model, prompt, 40)
        questions = [(prompt, "drum"), (prompt, "ball boat")]
        wanted = [begins_with(text, f" {answer}", prompt, ended=False) for _, answer in questions]
        assert generated_answers(model, questions, Readings(model)) == wanted


def test_generation_is_not_teacher_forced() -> None:
    """A model that gets every second token right only if it is told the first one."""
    model = tiny_with_tokenizer("gpt2")
    kite, coat = (model.tokenizer(text).input_ids[0] for text in (" kite", " coat"))

    def write(ids: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*ids.shape, len(model.tokenizer))
        logits[..., coat] = 5  # after anything
        logits[ids == kite] = 0
        logits[..., model.tokenizer(" drum").input_ids[0]] += (ids == kite).float() * 9
        return logits

    seen: list[torch.Tensor] = []
    before = model.hf.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )

    def replaced(logits: torch.Tensor) -> torch.Tensor:
        whole = write(seen[-1])
        return whole if whole.shape == logits.shape else whole[:, -logits.shape[1] :]

    try:
        with logits_of_a_model(model, replaced):
            assert generated_answers(model, [("In the", "kite drum"), ("In the", "coat coat")], Readings(model)) == [
                False, True,
            ]  # fmt: skip
    finally:
        before.remove()


def test_generated_answers_of_a_collapsed_model_are_none() -> None:
    model = tiny_with_tokenizer("gpt2")
    with logits_of_a_model(model, lambda logits: logits * nan):
        assert generated_answers(model, [("In the", "kite")], Readings(model)) == [None]


def test_an_end_of_text_token_ends_an_answer() -> None:
    model = tiny_with_tokenizer("gpt2")
    order = [model.tokenizer(" kite").input_ids[0], model.tokenizer.eos_token_id]
    calls: list[int] = []

    def write(logits: torch.Tensor) -> torch.Tensor:
        changed = torch.zeros_like(logits)
        changed[..., order[min(len(calls), 1)]] = 5
        calls.append(1)
        return changed

    with logits_of_a_model(model, write):
        assert generated_answers(model, [("In the", "kite")], Readings(model)) == [True]
    calls.clear()
    with logits_of_a_model(model, write):
        assert generated_answers(model, [("In the", "kite drum")], Readings(model)) == [False]


def test_an_endless_nothing_is_given_up() -> None:
    model = tiny_with_tokenizer("gpt2")
    blank = model.tokenizer("\n").input_ids[0]

    def write(logits: torch.Tensor) -> torch.Tensor:
        changed = torch.zeros_like(logits)
        changed[..., blank] = 5
        return changed

    with logits_of_a_model(model, write):
        assert generated_answers(model, [("In the", "kite")], Readings(model)) == [False]


def test_a_decoder_that_changes_what_stands_before_is_read_from_the_new_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_with_tokenizer("gpt2")
    order = iter([model.tokenizer(text).input_ids[0] for text in (" kite", " drum", " the")])
    decode = model.tokenizer.decode
    monkeypatch.setattr(
        model.tokenizer, "decode", lambda ids, **options: f"{len(ids)}" * (len(ids) > 3) + decode(ids, **options)
    )

    def write(logits: torch.Tensor) -> torch.Tensor:
        changed = torch.zeros_like(logits)
        changed[..., next(order)] = 5
        return changed

    with logits_of_a_model(model, write):
        assert generated_answers(model, [("In the park Clara", "kite drum")], Readings(model)) == [True]

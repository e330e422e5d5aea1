from __future__ import annotations

import pytest

from engramscope.report import words

S, N = words.NARROW_SPACE, words.NO_BREAK


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.7, "0.70"), (-0.34, "−0.34"), (2.1928, "2.19"), (12.34, "12.3"), (1234.5, f"1{S}234"),
     (-32094.4, f"−32{S}094"), (0.05, "0.050"),
     (0.0123, "0.012"), (0.004, "0.0040"), (2.4e-6, f"2.4{N}×{N}10⁻⁶"), (-3e7, f"−3.0{N}×{N}10⁷"),
     (None, "–"), (float("nan"), "–"),
     (float("-inf"), "−∞"), (0.099, "0.10"), (0.0951, "0.10")],
)  # fmt: skip
def test_numbers(value: float | None, text: str) -> None:
    assert words.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.704, "70"), (1.0, "100"), (0.0123, "1.2"), (-0.18, "−18"), (0.0, "0"), (-0.0001, "0"), (0.864, "86")],
)
def test_percentages(value: float, text: str) -> None:
    assert words.percent(value) == f"{text}{S}%"


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-5, "p < 0.0001"), (4e-4, "p = 0.0004"), (0.012, "p = 0.012"), (0.41, "p = 0.41"), (1.0, "p = 1")],
)
def test_p_values(value: float, text: str) -> None:
    assert words.p_value(value) == text


def test_loss_turns_the_interval_round() -> None:
    assert words.interval(0.55, 0.7, "recovery", "noise") == f"30 to 45{S}%"
    assert words.interval(0.55, 0.7, "recovery", "denoise") == f"55 to 70{S}%"
    assert words.interval(-1.5, -1.0, "effect", "noise") == "−1.50 to −1.00"
    assert words.interval(None, 1.0, "effect", "noise") == "no interval"


@pytest.mark.parametrize(
    ("cell", "name", "in_words"),
    [
        ({"site": "z", "layer": 3, "head": 5, "position_role": "all"}, "L3H5", "head 5 of layer 3"),
        ({"site": "q", "layer": 3, "head": 0, "position_role": "last"}, "L3H0 q at the last position",
         "head 0 of layer 3 (queries) at the last position"),
        ({"site": "mlp_out", "layer": 0, "window": 3}, "L0 mlp_out (window 3)", "the MLP output of layer 0 (window 3)"),
        ({"site": "resid_post", "layer": 4, "position_role": "subject_last"}, "L4 resid_post at the last subject token",
         "the residual stream after the block of layer 4 at the last subject token"),
        ({"site": "transformer.h.{layer}.mlp", "layer": 2}, "transformer.h.2.mlp", "the module transformer.h.2.mlp"),
        ({"site": "logits"}, "logits", "the logits"),
    ],
)  # fmt: skip
def test_names_of_cells(cell: dict[str, object], name: str, in_words: str) -> None:
    assert words.cell_name(cell) == name
    assert words.cell_words(cell) == in_words


@pytest.mark.parametrize(
    ("token", "text"),
    [(" Paris", "Paris"), ("\n", "↵"), (" ", "␣"), ("", "∅"), ("a\u202eb", "a·b"), ("\x00", "·"), ("a\tb", "a⇥b")],
)
def test_tokens_show_what_cannot_be_seen(token: str, text: str) -> None:
    assert words.token_text(token) == text


def test_lists_counts_and_times() -> None:
    assert words.joined(["a"]) == "a"
    assert words.joined(["a", "b", "c"]) == "a, b and c"
    assert words.joined(list("abcdef")) == "a, b, c, d and 2 more"
    assert words.joined([]) == ""
    assert words.counted(12480, "cell") == f"12{S}480 cells"
    assert words.counted(1, "pair") == "1 pair"
    assert words.seconds(200) == "3 min 20 s"
    assert words.seconds(7500) == "2 h 5 min"
    assert len(words.shortened("x" * 50, 22)) == 22

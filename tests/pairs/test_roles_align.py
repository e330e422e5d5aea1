"""Roles and alignments, worked out by hand and checked by their defining properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engramscope.pairs.align import both_ends, identity
from engramscope.pairs.roles import is_taken, known_roles, position_roles


@pytest.mark.parametrize(
    ("length", "leading", "spans", "expected"),
    [
        (4, 0, {}, "further further further last"),
        (4, 1, {}, "bos further further last"),
        (1, 0, {}, "last"),
        (1, 1, {}, "bos"),
        (8, 1, {"subject": (2, 3, 4)},
         "bos before subject_first subject_middle subject_last after_subject further last"),
        (7, 0, {"subject": (1, 2, 3, 4)},
         "before subject_first subject_middle subject_middle subject_last after_subject last"),
        (4, 0, {"subject": (1,)}, "before subject_last after_subject last"),
        (3, 0, {"subject": (0, 1)}, "subject_first subject_last last"),
        (3, 0, {"subject": (1, 2)}, "before subject_first subject_last"),
        (3, 0, {"subject": (2,)}, "before before subject_last"),
        (6, 0, {"io": (1,), "s2": (4,)}, "further io further further s2 last"),
        (6, 0, {"s2": (4, 5)}, "further further further further s2 last"),
        (6, 0, {"subject": (1, 2), "s2": (3, 4)}, "before subject_first subject_last s2 s2 last"),
        (6, 0, {"subject": (1, 2, 3), "part": (2, 4)}, "before subject_first subject_middle subject_last part last"),
    ],
)  # fmt: skip
def test_roles_by_hand(length: int, leading: int, spans: dict[str, tuple[int, ...]], expected: str) -> None:
    assert position_roles(length, leading, spans) == tuple(expected.split())


@given(st.data())
def test_roles_partition_the_prompt(data: st.DataObject) -> None:
    length = data.draw(st.integers(2, 12))
    leading = data.draw(st.integers(0, 1))
    start = data.draw(st.integers(leading, length - 1))
    end = data.draw(st.integers(start + 1, length))
    roles = position_roles(length, leading, {"subject": tuple(range(start, end))})
    assert len(roles) == length
    assert set(roles) <= set(known_roles())
    assert roles.count("subject_last") == 1
    assert roles.count("subject_first") == (1 if end - start > 1 else 0)
    assert roles.count("subject_middle") == max(0, end - start - 2)
    assert roles.count("before") == start - leading
    assert roles.count("last") == (0 if end == length else 1)
    # in the order of the prompt
    order = [known_roles().index(role) for role in roles]
    assert order == sorted(order)


def test_words_of_a_sweep_are_no_span_names() -> None:
    assert all(is_taken(name) for name in ("last", "all", "each", "bos", "further", "subject_last"))
    assert not any(is_taken(name) for name in ("subject", "s2", "io"))


@pytest.mark.parametrize(
    ("clean", "corrupted", "expected"),
    [
        ("abcd", "abcd", ("0123", "0123", "", "")),
        ("abXd", "abYd", ("0123", "0123", "", "")),
        ("abXYd", "abZd", ("0134", "0123", "2", "")),
        ("abZd", "abXYd", ("0123", "0134", "", "2")),
        ("ab", "abc", ("01", "02", "", "1")),
        ("abc", "ab", ("02", "01", "1", "")),
        ("a", "xyz", ("0", "2", "", "01")),
        ("aaa", "aa", ("02", "01", "1", "")),
    ],
)
def test_both_ends_by_hand(clean: str, corrupted: str, expected: tuple[str, str, str, str]) -> None:
    found = both_ends([ord(c) for c in clean], [ord(c) for c in corrupted])
    parts = (found.clean, found.corrupted, found.clean_only, found.corrupted_only)
    assert tuple("".join(map(str, part)) for part in parts) == expected


@given(st.lists(st.integers(0, 2), min_size=1, max_size=9), st.lists(st.integers(0, 2), min_size=1, max_size=9))
def test_both_ends_loses_no_position(clean: list[int], corrupted: list[int]) -> None:
    found = both_ends(clean, corrupted)
    assert sorted((*found.clean, *found.clean_only)) == list(range(len(clean)))
    assert sorted((*found.corrupted, *found.corrupted_only)) == list(range(len(corrupted)))
    assert list(found.clean) == sorted(found.clean)
    assert list(found.corrupted) == sorted(found.corrupted)
    assert len(found.clean) == len(found.corrupted) == min(len(clean), len(corrupted))
    assert (found.clean[-1], found.corrupted[-1]) == (len(clean) - 1, len(corrupted) - 1)
    # no pair is shifted unless it counts from the end, and everything before that is the same token
    for p, q in zip(found.clean, found.corrupted, strict=True):
        assert (p == q and clean[: p + 1] == corrupted[: q + 1]) or len(clean) - p == len(corrupted) - q


def test_identity() -> None:
    assert identity(3).clean == identity(3).corrupted == (0, 1, 2)
    assert identity(3).clean_only == identity(3).corrupted_only == ()

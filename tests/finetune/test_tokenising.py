"""Tokenising in several processes: in four by default, in fewer where the documents are few."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from engramscope.finetune import preset_names, resolve_settings
from engramscope.finetune.chunks import tokenise
from engramscope.finetune.layout import read_chunks
from tests.finetune.small import prepared
from tests.tiny_study import tokenizer


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """For how many processes `datasets` was asked, each time."""
    found: list[Any] = []
    plain = datasets.Dataset.map

    def noted(data: datasets.Dataset, *given: Any, **named: Any) -> Any:
        found.append(named["num_proc"])
        return plain(data, *given, **named)

    monkeypatch.setattr(datasets.Dataset, "map", noted)
    return found


@pytest.mark.parametrize("name", ["", *preset_names()])
def test_four_processes_are_the_default(name: str) -> None:
    assert resolve_settings(name).tokenizer_processes == 4


@pytest.mark.parametrize("preset", preset_names())
def test_a_large_corpus_is_tokenised_in_four_processes_and_a_small_one_in_this(
    preset: str, gpt2: Path, tmp_path: Path, asked: list[Any]
) -> None:
    large = prepared(str(gpt2), tmp_path / "large", preset=preset, count=1000)
    assert asked == [4]
    alone = prepared(str(gpt2), tmp_path / "alone", "tokenizer_processes=1", preset=preset, count=1000)
    prepared(str(gpt2), tmp_path / "small", preset=preset, count=60)
    assert asked == [4]
    for found, wanted in zip(read_chunks(large.chunks), read_chunks(alone.chunks), strict=True):
        assert [chunk.tolist() for chunk in found] == [chunk.tolist() for chunk in wanted]


@pytest.mark.parametrize(
    ("texts", "most", "processes"),
    [(499, 4, []), (500, 4, [2]), (999, 4, [3]), (1000, 4, [4]), (2600, 4, [4]), (1000, 2, [2])],
)
def test_a_process_is_worth_250_documents(
    texts: int, most: int, processes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []

    def noted(data: datasets.Dataset, make: Any, *, num_proc: int, fn_kwargs: dict[str, Any], **_: Any) -> Any:
        found.append(num_proc)
        return make(data[:], **fn_kwargs)

    monkeypatch.setattr(datasets.Dataset, "map", noted)
    words = tokenizer()
    several = tokenise(words, [f"In the park {at}" for at in range(texts)], end_of_text=True, processes=most)
    assert found == processes
    assert [words.decode(ids) for ids in several[:: texts - 1]] == ["In the park 0</s>", f"In the park {texts - 1}</s>"]

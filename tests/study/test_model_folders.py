"""Models that a study names by a folder beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from engramscope.study_inputs import located


def _folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}", encoding="utf-8")
    return path


def test_a_model_folder_beside_the_study_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    _folder(here / "tuned")
    _folder(there / "tuned")
    monkeypatch.chdir(there)
    assert located("tuned", here) == str(here / "tuned")
    assert located("../here/tuned", there) == str(there / "../here/tuned")
    assert located(str(there / "tuned"), here) == str(there / "tuned")


def test_other_names_stay_what_they_are(tmp_path: Path) -> None:
    _folder(tmp_path / "mini")
    (tmp_path / "gpt2").mkdir()  # a results folder, say
    for name in ("mini", "gpt2", "openai-community/gpt2", "elsewhere/tuned"):
        assert located(name, tmp_path) == name

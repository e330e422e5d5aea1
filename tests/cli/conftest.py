from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_study import save_model


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny gpt2")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny llama", "llama")


@pytest.fixture(autouse=True)
def _fast_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take most of the time of a tiny study, and have tests of their own."""
    monkeypatch.setattr("engramscope.report.page.write_figures", lambda *_, **__: [], raising=True)

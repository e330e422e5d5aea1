from __future__ import annotations

from typing import Any

import pytest

from engramscope.finetune import run
from tests.finetune.small import go_on, in_this_process
from tests.tiny_study import save_model


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training needs no process of its own here."""
    monkeypatch.setattr(run, "run_worker", in_this_process)


@pytest.fixture(scope="session")
def dropping(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with dropout, so that a generator that is not put back would be seen."""
    over = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
    return str(save_model(tmp_path_factory.mktemp("models") / "dropping", "gpt2", **over))


@pytest.fixture(scope="session")
def undisturbed(dropping: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "run_worker", in_this_process)
        return go_on(dropping, folder)

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from engramscope import bundled
from engramscope.models import Model, load_model, load_tokenizer


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take most of the time of a tiny study, and have tests of their own."""
    monkeypatch.setattr("engramscope.report.page.write_figures", lambda *_, **__: [], raising=True)


@pytest.fixture(scope="session")
def mini() -> Model:
    return load_model("mini", device="cpu")


@pytest.fixture(scope="session")
def twelve_by_twelve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the shape of GPT-2 small, as far as layers and heads go, with the tokenizer of `mini`."""
    import torch

    assert "mini" in bundled.names()
    words = load_tokenizer("mini")
    config = GPT2Config(n_layer=12, n_head=12, n_embd=48, n_positions=64, vocab_size=len(words))
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        hf = GPT2LMHeadModel(config)
    folder = tmp_path_factory.mktemp("twelve")
    hf.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder

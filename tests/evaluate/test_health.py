"""Perplexity, and the health of an edit."""

from __future__ import annotations

from dataclasses import replace
from math import exp, inf, nan

import pytest
import torch

from engramscope.edit.delta import Dense
from engramscope.edit.edit import Edit, fingerprint, identity
from engramscope.edit.tokens import encoder_of
from engramscope.errors import InputError
from engramscope.evaluate.health import HealthLimits, check_health, health_of
from engramscope.evaluate.perplexity import Perplexity, perplexity_of
from engramscope.models.model import Model
from tests.edit.small import FACT, shared_model, tiny_with_tokenizer
from tests.evaluate.small import logits_of_a_model

TEXTS = ("Anna says that she likes the ball", "In", "The child called Bob plays with the kite", "Clara lost the")
PARAMETER = "transformer.h.1.mlp.c_proj.weight"


def slowly(model: Model, texts: tuple[str, ...], first: int | None = None) -> tuple[float, int]:
    total, count = 0.0, 0
    for text in texts:
        ids = encoder_of(model).encode([text])[0].ids[:first]
        for place in range(1, len(ids)):
            logits = model.logits(torch.tensor([ids[:place]]))[0, -1].double()
            total -= float(torch.log_softmax(logits, -1)[ids[place]])
            count += 1
    return total, count


def an_edit(model: Model, size: float, **diagnostics: object) -> Edit:
    """A dense edit whose |ΔW| is so many times |W|."""
    value = dict(model.hf.named_parameters())[PARAMETER].detach()
    delta = torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
    delta = delta * (size * value.norm() / delta.norm())
    return Edit("dense", {PARAMETER: Dense(delta)}, (FACT,), {}, 0, identity(model), {PARAMETER: fingerprint(value)},
                diagnostics=diagnostics)  # fmt: skip


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("first", [None, 4])
def test_perplexity_equals_a_loop_and_weights_tokens_alike(family: str, first: int | None) -> None:
    model = shared_model(family)
    total, count = slowly(model, TEXTS, first)
    for tokens in (1, 16, 1024):
        found = perplexity_of(model, TEXTS, first=first, tokens=tokens)
        assert (found.tokens, found.texts) == (count, 4)
        assert found.nll == pytest.approx(total, rel=1e-5)
        assert found.value == pytest.approx(exp(total / count), rel=1e-5)


def test_a_long_text_is_read_in_pieces() -> None:
    for family, leading in (("gpt2", 0), ("llama", 1)):
        model = shared_model(family)
        text = "Anna likes the ball " * 40
        ids = encoder_of(model).encode([text])[0].ids
        assert len(ids) > 64
        body = len(ids) - leading
        pieces = -(-body // (64 - leading))
        assert perplexity_of(model, [text]).tokens == body - (0 if leading else pieces)


def test_texts_without_anything_to_predict_are_refused() -> None:
    with pytest.raises(InputError, match="longer texts"):
        perplexity_of(shared_model("gpt2"), ["In"])


def test_a_collapsed_model_has_an_infinite_perplexity() -> None:
    model = tiny_with_tokenizer("gpt2")
    with logits_of_a_model(model, lambda logits: logits * nan):
        found = perplexity_of(model, TEXTS)
    assert (found.value, found.nll) == (inf, inf)
    assert found.collapsed
    assert Perplexity(1e6, 10, 1).value == inf
    assert not Perplexity(1e6, 10, 1).collapsed


def test_the_health_of_a_small_edit() -> None:
    model = tiny_with_tokenizer("gpt2")
    edit = an_edit(model, 0.01, facts=[{"key_ratio": 0.9}, {"other": 1}, {"key_ratio": None}])
    before = [parameter.clone() for parameter in model.hf.parameters()]
    found = check_health(model, edit, TEXTS)
    assert all(torch.equal(one, other) for one, other in zip(before, model.hf.parameters(), strict=True))
    assert found.norms[PARAMETER] == pytest.approx(0.01, rel=1e-4)
    assert found.alignments == (0.9,)
    assert found.warnings == ()
    with edit.applied(model):
        expected = perplexity_of(model, TEXTS)
    assert found.before == perplexity_of(model, TEXTS)
    assert found.after == expected != found.before
    for part in ("|ΔW|/|W| 0.01", PARAMETER, "u·k/u·k* 0.9", "perplexity"):
        assert part in found.line
    assert found.as_dict()["perplexity_after"] == expected.value


def test_warnings_come_before_and_after() -> None:
    model = tiny_with_tokenizer("gpt2")
    large = an_edit(model, 1.5, facts=[{"key_ratio": -0.004}])
    early = health_of(model, large)
    assert early.before is None
    assert len(early.warnings) == 2
    assert "1.5 times its own norm" in early.warnings[0]
    assert "-0.004" in early.warnings[1]
    ok = Perplexity(10.0, 10, 1)
    high = Perplexity(18.0, 10, 1)
    small = an_edit(model, 0.01)
    assert "more than 2 times" in health_of(model, small, before=ok, after=high).warnings[0]
    assert health_of(model, small, before=ok, after=high, limits=HealthLimits(perplexity=3.0)).warnings == ()
    assert health_of(model, small, before=high, after=ok).warnings == ()
    assert "collapsed" in health_of(model, small, before=ok, after=Perplexity(inf, 10, 1)).warnings[0]
    assert "infinite" in health_of(model, small, before=ok, after=Perplexity(inf, 10, 1)).line
    assert health_of(model, small, before=ok, after=Perplexity(inf, 10, 1)).as_dict()["perplexity_after"] is None


def test_an_edit_of_numbers_that_are_none_is_warned_of() -> None:
    model = tiny_with_tokenizer("gpt2")
    edit = an_edit(model, 0.01)
    broken = replace(edit, deltas={PARAMETER: Dense(edit.deltas[PARAMETER].dense() * nan)})
    found = check_health(model, broken, TEXTS)
    assert "likely to collapse" in found.warnings[0]
    assert "has collapsed" in found.warnings[1]


def test_without_texts_there_is_no_perplexity() -> None:
    model = tiny_with_tokenizer("gpt2")
    found = check_health(model, an_edit(model, 0.2), [])
    assert found.before is found.after is None
    assert "perplexity" not in found.line

"""The loss in pieces: torch's own cross entropy, its gradient, and what it does not hold in memory."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from engramscope.finetune import loss
from engramscope.finetune.loss import summed_nll

CHUNKS, TOKENS, VOCABULARY = 3, 7, 11


def batch(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    logits = 3 * torch.randn(CHUNKS, TOKENS, VOCABULARY, generator=generator, dtype=torch.float64)
    labels = torch.randint(VOCABULARY, (CHUNKS, TOKENS), generator=generator)
    labels[0, 4:] = -100  # padding
    labels[:, 0] = -100  # first tokens
    labels[2] = -100  # a chunk of nothing
    return logits.to(dtype).requires_grad_(), labels


def plain(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    shifted = logits[:, :-1].reshape(-1, VOCABULARY)
    return cross_entropy(shifted, labels[:, 1:].reshape(-1), ignore_index=-100, reduction="sum")


@pytest.mark.parametrize("piece", [1, 2 * VOCABULARY, 5 * VOCABULARY + 3, 1 << 22])
def test_loss_and_gradient_are_those_of_torch(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "_PIECE", piece)
    logits, labels = batch()
    ours, theirs = summed_nll(logits, labels), plain(logits, labels)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
    weight = torch.tensor(0.37, dtype=torch.float64)
    (found,) = torch.autograd.grad(ours * weight, logits)
    (wanted,) = torch.autograd.grad(theirs * weight, logits)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)
    assert found[0, 3:].eq(0).all()
    assert found[:, -1].eq(0).all()
    assert found[2].eq(0).all()


def test_gradient_agrees_with_finite_differences() -> None:
    logits, labels = batch()
    assert torch.autograd.gradcheck(lambda given: summed_nll(given, labels), (logits,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    logits, labels = batch(dtype)
    ours, theirs = summed_nll(logits, labels), plain(logits.float(), labels)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-6)
    (found,) = torch.autograd.grad(ours, logits)
    (wanted,) = torch.autograd.grad(theirs, logits)
    assert found.dtype == dtype
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)


def test_large_logits_do_not_overflow() -> None:
    logits = torch.tensor([[[2e4, -2e4, 0.0], [0.0, 0.0, 0.0]]], dtype=torch.float32, requires_grad=True)
    labels = torch.tensor([[-100, 1]])
    nll = summed_nll(logits, labels)
    nll.backward()
    assert nll.item() == 4e4
    assert logits.grad is not None
    assert logits.grad[0, 0].tolist() == [1.0, -1.0, 0.0]


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_left_out_may_be_no_number(value: float) -> None:
    logits, labels = batch()
    with torch.no_grad():
        logits[0, 4:] = logits[2] = value
    nll = summed_nll(logits, labels)
    nll.backward()
    assert torch.isfinite(nll)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[2].eq(0).all()


def test_forward_and_backward_under_autocast_are_float32() -> None:
    logits, labels = batch(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        nll = summed_nll(logits, labels)
    nll.backward()
    wanted = plain(logits.detach(), labels)
    torch.testing.assert_close(nll, wanted, atol=1e-5, rtol=1e-6)
    assert logits.grad is not None
    assert logits.grad.dtype == torch.float32


def test_nothing_of_the_size_of_the_logits_is_kept_but_themselves() -> None:
    logits, labels = batch()
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        summed_nll(logits, labels)
    large = [one for one in kept if one.numel() >= logits[0].numel()]
    assert [one.data_ptr() for one in large] == [logits.data_ptr()]

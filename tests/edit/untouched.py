"""That a model is left exactly as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from engramscope.models.model import Model


@contextmanager
def untouched(model: Model) -> Iterator[None]:
    """Fail if anything about the model, or a global generator, is different after the context.

    Within it, the model is in training mode but for its first block, one parameter has a gradient, and one is frozen.
    """
    parameters = dict(model.hf.named_parameters())
    names = list(parameters)
    model.hf.train()
    model.first_block.eval()
    parameters[names[0]].grad = torch.ones_like(parameters[names[0]])
    parameters[names[1]].requires_grad_(False)
    before, kept = _state(model), {name: value.detach().clone() for name, value in model.hf.state_dict().items()}
    try:
        yield
        after = _state(model)
        assert after == before, [key for key in before if after[key] != before[key]]
        assert all(torch.equal(value, kept[name]) for name, value in model.hf.state_dict().items())
        assert torch.equal(parameters[names[0]].grad, torch.ones_like(parameters[names[0]]))
    finally:
        model.hf.eval()
        parameters[names[0]].grad = None
        parameters[names[1]].requires_grad_(True)


def _state(model: Model) -> dict[str, Any]:
    found: dict[str, Any] = {"random": torch.get_rng_state().tolist(), "grad": torch.is_grad_enabled()}
    for name, module in model.hf.named_modules():
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
        found[f"module {name}"] = (module.training, hooks, "forward" in module.__dict__)
    for name, parameter in model.hf.named_parameters():
        found[f"parameter {name}"] = (parameter.requires_grad, parameter.grad is None, parameter.data_ptr())
    return found

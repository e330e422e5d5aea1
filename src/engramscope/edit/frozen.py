"""A model that gradients pass through without any being kept in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def frozen(hf: nn.Module) -> Iterator[None]:
    """Evaluation mode, gradients recorded, but for no parameter of the model; mode and flags are put back.

    Gradients that parameters hold already are left alone, because none is added to them.
    """
    modes = [(module, module.training) for module in hf.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in hf.parameters()]
    try:
        for module, _ in modes:
            module.training = False
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, needed in flags:
            parameter.requires_grad_(needed)

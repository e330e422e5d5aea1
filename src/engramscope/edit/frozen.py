"""A model that gradients pass through without any being kept in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(hf: nn.Module) -> Iterator[None]:
    """Evaluation mode, in which nothing is dropped at random; the mode of every module is put back."""
    modes = [(module, module.training) for module in hf.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def frozen(hf: nn.Module) -> Iterator[None]:
    """Evaluation mode, gradients recorded, but for no parameter of the model; mode and flags are put back.

    Gradients that parameters hold already are left alone, because none is added to them.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in hf.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        with evaluating(hf), torch.enable_grad():
            yield
    finally:
        for parameter, needed in flags:
            parameter.requires_grad_(needed)

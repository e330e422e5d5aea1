"""Weights that are elsewhere until they are needed: bring those of one module in once, however often it is called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from engramscope.models.drive import replaced


@contextmanager
def held(root: nn.Module) -> Iterator[None]:
    """Hold the weights of `root` on their execution device for the time of the context.

    Weights that accelerate keeps in main memory or on disk come in and go out again with every call of their module.
    Inside the context they are in. Where nothing is offloaded, nothing happens.
    """
    with ExitStack() as stack:
        for module in root.modules():
            hook = getattr(module, "_hf_hook", None)
            if hook is not None and _offloads(hook):
                stack.enter_context(_held(module, hook))
        yield


def is_offloaded(root: nn.Module) -> bool:
    """Whether weights of `root` come in only when they are needed."""
    hooks = (getattr(module, "_hf_hook", None) for module in root.modules())
    return any(hook is not None and _offloads(hook) for hook in hooks)


def _offloads(hook: Any) -> bool:
    parts = getattr(hook, "hooks", None)
    return any(map(_offloads, parts)) if parts else bool(getattr(hook, "offload", False))


@contextmanager
def _held(module: nn.Module, hook: Any) -> Iterator[None]:
    hook.pre_forward(module)
    try:
        # without the wrapper that would fetch the weights again, and drop them
        with replaced(module, "forward", module._old_forward):  # pyright: ignore[reportArgumentType]
            yield
    finally:
        hook.post_forward(module, torch.empty(0))

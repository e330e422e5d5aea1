"""Weights that are elsewhere until they are needed: bring those of one module in once, however often it is called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

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


def execution_device(module: nn.Module) -> torch.device:
    """Where the weights of an offloaded module come to when they are needed."""
    hook = getattr(module, "_hf_hook", None)
    device = next((part.execution_device for part in _parts(hook) if getattr(part, "execution_device", None)), "cpu")
    return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)


def saved_tensors(hf: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights and buffers that are saved, by name in their order; those that are offloaded come in one at a time."""
    state = hf.state_dict()
    for name in sorted(state):
        if state[name].device.type != "meta":
            yield name, state[name]
            continue
        path, _, attribute = name.rpartition(".")
        owner = hf.get_submodule(path)
        with held_alone(owner):
            yield name, getattr(owner, attribute).detach()


@contextmanager
def held_alone(module: nn.Module) -> Iterator[None]:
    """Hold the weights of this one module, without those of the modules in it."""
    hook = getattr(module, "_hf_hook", None)
    if hook is None or not _offloads(hook):
        yield
        return
    with _held(module, hook):
        yield


def _parts(hook: Any) -> list[Any]:
    inner = getattr(hook, "hooks", None)
    return [part for one in inner for part in _parts(one)] if inner else [] if hook is None else [hook]


def _offloads(hook: Any) -> bool:
    return any(bool(getattr(part, "offload", False)) for part in _parts(hook))


@contextmanager
def _held(module: nn.Module, hook: Any) -> Iterator[None]:
    hook.pre_forward(module)
    try:
        # without the wrapper that would fetch the weights again, and drop them
        with replaced(module, "forward", module._old_forward):  # pyright: ignore[reportArgumentType]
            yield
    finally:
        hook.post_forward(module, torch.empty(0))

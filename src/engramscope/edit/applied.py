"""Deltas in a model: put in, taken out to the bit, in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from engramscope.edit.delta import Delta, LowRank
from engramscope.errors import InputError
from engramscope.models.hooks import input_tensor, output_tensor, with_output

_WIDE = (torch.float32, torch.float64)


@dataclass(frozen=True, slots=True)
class Applied:
    """One edit that is in a model: whose it is, the parameters' values before it, and the hooks that it needs."""

    owner: object
    deltas: Mapping[str, Delta]
    kept: Mapping[str, Tensor]
    hooks: tuple[Any, ...]


#: what is in which model, in the order in which it was put there
_IN: WeakKeyDictionary[nn.Module, list[Applied]] = WeakKeyDictionary()


def applied_to(hf: nn.Module) -> tuple[object, ...]:
    """The edits that are in a model, in the order in which they were put there."""
    return tuple(one.owner for one in _IN.get(hf, ()))


def deltas_in(hf: nn.Module) -> tuple[Mapping[str, Delta], ...]:
    """What those edits add, in the same order."""
    return tuple(one.deltas for one in _IN.get(hf, ()))


@contextmanager
def with_deltas(hf: nn.Module, deltas: Mapping[str, Delta]) -> Iterator[None]:
    """Deltas in a model for the time of a context, without being an edit; afterwards every bit is as it was."""
    owner = object()
    apply_deltas(hf, owner, deltas)
    try:
        yield
    finally:
        revert_deltas(hf, owner)


@contextmanager
def without_deltas(hf: nn.Module) -> Iterator[None]:
    """A model without any edit for the time of a context; afterwards all are in it again, in the same order."""
    stack = _IN.get(hf, [])
    out = list(stack)
    for one in reversed(out):
        _take_out(hf, one)
    stack.clear()
    try:
        yield
    finally:
        for one in out:
            apply_deltas(hf, one.owner, one.deltas)


def apply_deltas(hf: nn.Module, owner: object, deltas: Mapping[str, Delta]) -> None:
    """Put deltas into a model.

    Args:
        hf: the model of transformers.
        owner: under whom they can be taken out again; it may be in the model once.
        deltas: name of a parameter -> what is added.

    Raises:
        InputError: the owner is in the model already, the model has no such parameter of that shape, or one in half
            precision belongs to no linear map.
    """
    stack = _IN.setdefault(hf, [])
    if any(one.owner is owner for one in stack):
        raise InputError("The edit is in the model already; revert it before it is applied again.")
    stack.append(_put(hf, owner, deltas))


def revert_deltas(hf: nn.Module, owner: object) -> None:
    """Take an owner's deltas out again; what was put in after it is taken out with it and put back.

    Raises:
        InputError: they are not in the model.
    """
    stack = _IN.get(hf, [])
    place = next((index for index, one in enumerate(stack) if one.owner is owner), None)
    if place is None:
        raise InputError("The edit is not in the model, so it cannot be reverted.")
    later = stack[place + 1 :]
    for one in reversed(stack[place:]):
        _take_out(hf, one)
    del stack[place:]
    for one in later:
        stack.append(_put(hf, one.owner, one.deltas))


@torch.no_grad()
def _put(hf: nn.Module, owner: object, deltas: Mapping[str, Delta]) -> Applied:
    parameters = dict(hf.named_parameters())
    for name, delta in deltas.items():
        if name not in parameters or tuple(parameters[name].shape) != delta.shape:
            raise InputError(f"The model has no parameter {name} of shape {delta.shape}; the edit is of another model.")
    kept = {name: parameters[name].detach().clone() for name in deltas if parameters[name].dtype in _WIDE}
    beside = [name for name in deltas if name not in kept]
    for name in beside:
        _ensure_linear(hf, name)
    hooks: list[Any] = []
    try:
        for name in kept:
            parameter = parameters[name]
            parameter.copy_(parameter + deltas[name].dense().to(parameter.device, parameter.dtype))
        for name in beside:
            hooks.append(_beside(hf, name, deltas[name]))
    except BaseException:  # an edit that is half in could not be reverted
        _take_out(hf, Applied(owner, deltas, kept, tuple(hooks)))
        raise
    return Applied(owner, deltas, kept, tuple(hooks))


@torch.no_grad()
def _take_out(hf: nn.Module, one: Applied) -> None:
    parameters = dict(hf.named_parameters())
    for name, value in one.kept.items():
        parameters[name].copy_(value)
    for hook in one.hooks:
        hook.remove()


def _ensure_linear(hf: nn.Module, name: str) -> None:
    module = hf.get_submodule(name.rpartition(".")[0])
    if not isinstance(module, nn.Linear | Conv1D):
        raise InputError(
            f"{name} is stored in half precision and belongs to a {type(module).__name__}: an edit of it would be "
            "rounded away. Load the model in float32."
        )


def _beside(hf: nn.Module, name: str, delta: Delta) -> Any:
    """Add to a linear module's output what the delta adds, in float32."""
    path, _, which = name.rpartition(".")
    module = hf.get_submodule(path)
    added = _addition(module, which, delta)

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        given, value = input_tensor(args, kwargs), output_tensor(output)
        assert given is not None
        assert value is not None
        return with_output(output, (value.float() + added(given.float())).to(value.dtype))

    return module.register_forward_hook(hook, with_kwargs=True)


def _addition(module: nn.Module, which: str, delta: Delta) -> Callable[[Tensor], Tensor]:
    """x -> x ΔW, or Δb."""
    device, as_written = module.get_parameter(which).device, isinstance(module, Conv1D)
    if which == "bias":
        bias = delta.dense().to(device)
        return lambda x: bias
    if isinstance(delta, LowRank):
        parts = (delta.left, delta.right) if as_written else (delta.right.T, delta.left.T)
        first, second = parts[0].to(device), parts[1].to(device)
        return lambda x: (x @ first) @ second
    matrix = (delta.dense() if as_written else delta.dense().T).to(device)
    return lambda x: x @ matrix

"""The one place where hooks live: read and replace values at sites, and leave no trace afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from engramscope.models.interface import pattern_hooks
from engramscope.models.site import AttentionPattern, ModelLogits, Port, ResidMid, SiteAccess

Tap = Callable[[Tensor], Tensor | None]
Side = Literal["input", "output"]


class Tappable(Protocol):
    """What `taps` needs to know of a model."""

    @property
    def hf(self) -> nn.Module:
        """The model of transformers."""
        ...

    @property
    def first_block(self) -> nn.Module:
        """Its first block, whose input says how many rows and positions a forward has."""
        ...


@dataclass(frozen=True, slots=True)
class Hook:
    """A function on one tensor at the boundary of a module; it returns None, or a new tensor to go on with."""

    module: nn.Module
    side: Side
    fn: Tap


@contextmanager
def attached(hooks: Sequence[Hook]) -> Iterator[None]:
    """Attach hooks, in this order, for the time of the context; they are removed whatever happens inside."""
    handles = []
    try:
        for hook in hooks:
            handles.append(_attach(hook))
        yield
    finally:
        for handle in reversed(handles):
            handle.remove()


@contextmanager
def taps(
    model: Tappable, wanted: Sequence[tuple[SiteAccess, Tap]], *, at: nn.Module | None = None, copies: bool = True
) -> Iterator[None]:
    """Read or replace values at sites during the forwards of a context.

    Each function is called with the value of its site as the model computes it: `[batch, seq, width]`, for a pattern
    `[batch, n_heads, query, key]`, for the logits what the model returns. It is a copy, so it may be kept. A function
    that returns None has only read; a tensor that it returns takes the place of the value (it is copied, too, because
    some architectures go on to change it in place).

    Several functions at one place act in the order given. `resid_mid` comes after `attn_out`, whatever the order.

    Args:
        model: the model (its `hf` is the module that will be called inside the context).
        wanted: where (`model.site(...)`), and what to do there.
        at: the block whose input says how many rows and positions there are, where only that block is called.
        copies: False where every function leaves its argument as it is, and returns a tensor of its own.

    Raises:
        ValueError: (inside the forward) a function returned a tensor of another shape.
    """
    shape = _BatchShape()
    hooks = [Hook(at or model.first_block, "input", shape.note)]
    checked = _checked if copies else _unchecked
    patterns: list[tuple[nn.Module, Tap]] = []
    late: list[Hook] = []
    for access, fn in wanted:
        if isinstance(access, AttentionPattern) and access.dropout is None:
            patterns.append((access.attention, checked(fn, "the attention pattern")))
        elif isinstance(access, AttentionPattern):
            assert access.dropout is not None
            hooks.append(_hook(access.dropout, checked(fn, access.dropout.path)))
        elif isinstance(access, ModelLogits):
            hooks.append(Hook(model.hf, "output", checked(fn, "the logits")))
        elif isinstance(access, ResidMid):
            late += _resid_mid_hooks(access, checked(fn, "resid_mid"), shape)
        else:
            hooks.append(_hook(access, shape.by_token(checked(fn, access.path))))
    with ExitStack() as stack:
        stack.enter_context(attached([*hooks, *late]))
        if patterns:
            stack.enter_context(pattern_hooks(model.hf, patterns))
        yield


def _checked(fn: Tap, where: str) -> Tap:
    """`fn` on a copy of the value, with its result copied and held to the value's shape, dtype and device."""

    def call(value: Tensor) -> Tensor | None:
        # copies: FalconMLP's output is changed in place by its block (`mlp_output += attention_output`)
        new = fn(value.clone())
        if new is None:
            return None
        if new.shape != value.shape:
            raise ValueError(
                f"A replacement at {where} has shape {tuple(new.shape)}, but the value there has {tuple(value.shape)}."
            )
        return new.to(device=value.device, dtype=value.dtype, copy=True)

    return call


def _unchecked(fn: Tap, where: str) -> Tap:
    del where
    return fn


def output_tensor(output: Any) -> Tensor | None:
    """The tensor that a module's output is about: itself, or the first element of a tuple or `ModelOutput`."""
    if isinstance(output, ModelOutput):
        output = output[_main_key(output)]
    elif isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def with_output(output: Any, new: Tensor) -> Any:
    """`output` with its tensor replaced; everything else in it is kept."""
    if isinstance(output, ModelOutput):
        replaced = copy.copy(output)
        replaced[_main_key(output)] = new
        return replaced
    if isinstance(output, tuple):
        items = (new, *output[1:])
        return type(output)(*items) if hasattr(output, "_fields") else items
    if isinstance(output, list):
        return [new, *output[1:]]
    return new


def input_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The tensor that a module's input is about: the first positional one, `hidden_states`, or the first keyword."""
    place = _input_place(args, kwargs)
    if place is None:
        return None
    return args[place] if isinstance(place, int) else kwargs[place]


def with_input(args: tuple[Any, ...], kwargs: Mapping[str, Any], new: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`(args, kwargs)` with the input's tensor replaced."""
    place = _input_place(args, kwargs)
    assert place is not None, "a module without an input tensor has no input to replace"
    if isinstance(place, int):
        return (*args[:place], new, *args[place + 1 :]), dict(kwargs)
    return args, {**kwargs, place: new}


def _hook(port: Port, fn: Tap) -> Hook:
    return Hook(port.module, port.side, fn)


def _attach(hook: Hook) -> Any:
    if hook.side == "output":

        def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
            value = output_tensor(output)
            new = None if value is None else hook.fn(value)
            return None if new is None else with_output(output, new)

        return hook.module.register_forward_hook(after)

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = input_tensor(args, kwargs)
        new = None if value is None else hook.fn(value)
        return None if new is None else with_input(args, kwargs, new)

    return hook.module.register_forward_pre_hook(before, with_kwargs=True)


def _input_place(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | str | None:
    if args and isinstance(args[0], Tensor):
        return 0
    if isinstance(kwargs.get("hidden_states"), Tensor):
        return "hidden_states"
    return next((name for name, value in kwargs.items() if isinstance(value, Tensor)), None)


def _main_key(output: ModelOutput) -> str:
    # a causal LM's output begins with the loss where labels were given
    return "logits" if "logits" in output else next(iter(output.keys()))


class _BatchShape:
    """Rows and positions of the current forward: OPT's feed-forward layers see `[batch * seq, width]`."""

    def __init__(self) -> None:
        self._batch, self._seq = 0, 0

    def note(self, block_input: Tensor) -> None:
        """Called at the input of the first block, which is never flattened."""
        self._batch, self._seq = block_input.shape[0], block_input.shape[1]

    def by_token(self, fn: Tap) -> Tap:
        """`fn` on `[batch, seq, width]` where the value is `[batch * seq, width]`."""

        def call(value: Tensor) -> Tensor | None:
            if value.ndim != 2:
                return fn(value)
            new = fn(value.view(self._batch, self._seq, value.shape[-1]))
            return None if new is None else new.reshape(value.shape)

        return call


def _resid_mid_hooks(access: ResidMid, fn: Tap, shape: _BatchShape) -> list[Hook]:
    """Read `resid_pre` and `attn_out` of one forward, give their sum to `fn`, write its result through `attn_out`."""
    pre: list[Tensor] = []

    def keep(value: Tensor) -> None:
        pre[:] = [value.clone()]

    def write(added: Tensor) -> Tensor | None:
        middle = pre[0] + added
        new = fn(middle)
        if new is None:
            return None
        # `new - resid_pre`; where nothing changed exactly `added`, in a form through which gradients reach `new`
        return torch.where(new == middle, added + (new - middle), new - pre[0])

    return [_hook(access.resid_pre, keep), _hook(access.attn_out, shape.by_token(write))]

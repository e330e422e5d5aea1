"""Go through a model block by block: the model's own forward leads, and each block's call is answered by a visitor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from engramscope.models.hooks import with_output

#: called as (layer, positional arguments, keyword arguments) instead of a block; returns what the block would
Visitor = Callable[[int, tuple[Any, ...], dict[str, Any]], Any]
_ABSENT = object()


@contextmanager
def replaced(target: nn.Module, name: str, value: Any) -> Iterator[None]:
    """An attribute of one module object is another for the time of the context (`_ABSENT`: the class's own)."""
    before = target.__dict__.get(name, _ABSENT)
    _set(target, name, value)
    try:
        yield
    finally:
        _set(target, name, before)


def _set(target: nn.Module, name: str, value: Any) -> None:
    if value is _ABSENT:
        target.__dict__.pop(name, None)
    else:
        target.__dict__[name] = value


@contextmanager
def visited(blocks: Sequence[nn.Module], visitor: Visitor) -> Iterator[None]:
    """For the time of the context, calling a block calls `visitor` instead of the block's forward.

    While the visitor works for a block, that block is itself again, so that the visitor can call it, hooks and all.
    """
    own = [block.__dict__.get("forward", _ABSENT) for block in blocks]

    def stand_in(layer: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            with replaced(blocks[layer], "forward", own[layer]):
                return visitor(layer, args, kwargs)

        return forward

    with ExitStack() as stack:
        for layer, block in enumerate(blocks):
            stack.enter_context(replaced(block, "forward", stand_in(layer)))
        yield


def example_outputs(hf: Any, blocks: Sequence[nn.Module], tokens: Tensor) -> list[Any]:
    """What each block returns in a forward on `tokens`: the form (tensor, tuple, …) that `passed_by` needs."""
    found: list[Any] = [None] * len(blocks)

    def keep(layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            found[layer] = output

        return hook

    handles = [block.register_forward_hook(keep(layer)) for layer, block in enumerate(blocks)]
    try:
        with torch.no_grad():
            hf(input_ids=tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


def passed_by(hf: Any, blocks: Sequence[nn.Module], forms: Sequence[Any], tokens: Tensor, visitor: Visitor) -> Any:
    """A forward of the model in which no block computes anything.

    Args:
        hf: the model.
        blocks: its blocks.
        forms: from `example_outputs`.
        tokens: ids [batch, seq], looked up in the embedding and otherwise without meaning.
        visitor: returns the tensor that a block is to return; None for its own input.

    Returns:
        What the model returns.
    """

    def answer(layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        new = visitor(layer, args, kwargs)
        given = args[0] if args else kwargs["hidden_states"]
        return with_output(forms[layer], given if new is None else new)

    with torch.no_grad(), visited(blocks, answer):
        return hf(input_ids=tokens, use_cache=False)

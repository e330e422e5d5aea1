"""What a model hands its blocks besides the residual stream, for other tokens than those that it was made for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engramscope.models.model import Model


def gathered(value: Any, index: Tensor, total: int, known: dict[int, tuple[Tensor, Tensor]]) -> Any:
    """Arguments of a block for some of the packed tokens: each takes what belongs to the token that it stands for.

    Args:
        value: a tensor, or tuples, lists and mappings of them; anything else is handed on.
        index: which of the `total` tokens that the model was given.
        total: their number: tensors [1, total, ...] and [total] hold something for every token.
        known: tensors that were gathered before for the same index, by the identity of the original.
    """
    if isinstance(value, Tensor):
        if id(value) not in known:
            # the original is kept beside its copy, so that no other tensor can come to have its identity
            known[id(value)] = (value, _tokens(value, index, total))
        return known[id(value)][1]
    return _mapped(value, lambda part: gathered(part, index, total, known))


def gathered_rows(value: Any, index: Tensor, total: int, n_heads: int) -> Any:
    """Arguments of a block for some of the rows of a batch.

    Args:
        value: as above.
        index: which of the `total` rows that the model was given.
        total: their number: tensors [total, ...] hold something for every row, [total * n_heads, ...] for every head.
        n_heads: number of heads.
    """
    if isinstance(value, Tensor):
        index = index.to(value.device)
        if value.ndim > 1 and value.shape[0] == total:
            return value.index_select(0, index)
        if value.ndim > 2 and value.shape[0] == total * n_heads:
            return value.unflatten(0, (total, n_heads)).index_select(0, index).flatten(0, 1)
        return value
    return _mapped(value, lambda part: gathered_rows(part, index, total, n_heads))


def _tokens(value: Tensor, index: Tensor, total: int) -> Tensor:
    index = index.to(value.device)
    if value.ndim > 1 and value.shape[0] == 1 and value.shape[1] == total:
        return value.index_select(1, index)
    if value.ndim == 1 and value.shape[0] == total:
        return value.index_select(0, index)
    return value


def _mapped(value: Any, fn: Any) -> Any:
    if type(value) in (tuple, list):
        return type(value)(fn(part) for part in value)
    if type(value) is dict:
        return {key: fn(part) for key, part in value.items()}
    return value


def without_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """The residual stream that a block is called with, and the other arguments."""
    if args:
        return args[0], args[1:], dict(kwargs)
    others = dict(kwargs)
    return others.pop("hidden_states"), (), others


def placeholder(model: Model, rows: int, length: int) -> Tensor:
    """Token ids [rows, length] without meaning, where a forward wants some and its blocks compute nothing.

    Not the padding token: transformers warns of prompts that begin or end with it.
    """
    padding = getattr(model.hf.config, "pad_token_id", None)
    return torch.full((rows, length), 1 if padding == 0 else 0, dtype=torch.long, device=model.device)


def rows_at(table: Tensor, numbers: Any) -> Tensor:
    """Rows of a table by their numbers; on a CPU three times as fast as `table[index]`."""
    return table.index_select(0, index_tensor(numbers, table.device))


def index_tensor(values: Any, device: torch.device) -> Tensor:
    """An index array as a tensor."""
    return torch.from_numpy(values).to(device)

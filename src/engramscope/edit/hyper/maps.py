"""Which matrices an editor network changes: those of the last MLPs."""

from __future__ import annotations

from torch import nn
from transformers.pytorch_utils import Conv1D

from engramscope.edit.matrices import LinearMap, down_projection, linear_map
from engramscope.errors import SiteError
from engramscope.models.model import Model


def edited_maps(model: Model, blocks: int) -> list[LinearMap]:
    """All matrices of the MLPs of the last blocks, in the order of the model.

    These are two a block, or three where the MLP is gated (gate, up, down). They are found from the down projection:
    the linear maps that lie in the same module as it does.

    Args:
        model: the model.
        blocks: how many blocks, counted from the last one.

    Raises:
        SiteError: the model has fewer blocks, or its MLPs have no matrices of their own (fused experts).
    """
    count = model.anatomy.n_layers
    if blocks > count:
        raise SiteError(f"{model.name} has {count} blocks, so the MLPs of the last {blocks} cannot be edited.")
    found: list[LinearMap] = []
    for layer in range(count - blocks, count):
        inside = down_projection(model, layer).path.rpartition(".")[0]
        children = model.hf.get_submodule(inside).named_children()
        found += [linear_map(model, f"{inside}.{name}") for name, child in children if isinstance(child, _LINEAR)]
    return found


_LINEAR = (nn.Linear, Conv1D)

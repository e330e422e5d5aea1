"""Linear maps of a model that can be edited: by the type of their module, never by their shape."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from engramscope.errors import SiteError
from engramscope.models.model import Model
from engramscope.models.site import Port


@dataclass(frozen=True, slots=True)
class LinearMap:
    """A module that computes x W + b, W [n_in, n_out].

    Attributes:
        path: dotted path of the module.
        module: the module.
        stored_as_written: its weight is stored as W (`Conv1D` of GPT-2); False where it is stored transposed.
        n_in, n_out: sizes.
    """

    path: str
    module: nn.Module
    stored_as_written: bool
    n_in: int
    n_out: int

    @property
    def name(self) -> str:
        """Name of its weight among the parameters of the model."""
        return f"{self.path}.weight"

    @property
    def weight(self) -> Tensor:
        """The weight as it is stored."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def matrix(self) -> Tensor:
        """W [n_in, n_out], a view of the weight."""
        return self.weight if self.stored_as_written else self.weight.T

    def stored(self, matrix: Tensor) -> Tensor:
        """A matrix [n_in, n_out] in the orientation of the stored weight."""
        return matrix if self.stored_as_written else matrix.T


def linear_map(model: Model, path: str) -> LinearMap:
    """The linear map at a module path.

    Raises:
        SiteError: there is no such module, or it is no linear map.
    """
    module = dict(model.hf.named_modules()).get(path)
    if module is None:
        raise SiteError(f"The model has no module {path!r}.")
    if isinstance(module, Conv1D):
        rows, columns = module.weight.shape
        return LinearMap(path, module, True, rows, columns)
    if isinstance(module, nn.Linear):
        return LinearMap(path, module, False, module.in_features, module.out_features)
    raise SiteError(f"{path} is a {type(module).__name__}, not a linear map, so it has no matrix to edit.")


def down_projection(model: Model, layer: int) -> LinearMap:
    """The second matrix of a layer's MLP: it maps the neurons (keys) to what the MLP adds (values).

    Args:
        model: the model.
        layer: the block, counted from 0.

    Raises:
        SiteError: there is no such layer, or its MLP has no single matrix of this kind (fused experts).
    """
    model.site("resid_post", layer)
    if "mlp_act" in model.anatomy.refusals:
        raise SiteError(
            f"{model.name} cannot be edited in its MLPs: {model.anatomy.refusals['mlp_act']} An editor of one "
            "key-value matrix has none to change."
        )
    port = model.site("mlp_act", layer)
    assert isinstance(port, Port)
    return linear_map(model, port.path)

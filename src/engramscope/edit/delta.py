"""What an edit adds to a parameter: a product of two thin matrices, or a tensor of its shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from engramscope.edit.matrices import LinearMap


@dataclass(frozen=True, slots=True)
class LowRank:
    """A sum of outer products: `left` @ `right`, in the orientation in which the parameter is stored.

    Attributes:
        left: [shape[0], rank], float32.
        right: [rank, shape[1]], float32.
    """

    left: Float[Tensor, "rows rank"]
    right: Float[Tensor, "rank columns"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter."""
        return self.left.shape[0], self.right.shape[1]

    def dense(self) -> Tensor:
        """The sum as one matrix, on the device of its parts."""
        return self.left @ self.right

    def norm(self) -> float:
        """Frobenius norm, from the Gram matrices, so that the product is not formed."""
        left, right = self.left.double(), self.right.double()
        square = ((left.T @ left) * (right @ right.T)).sum()
        return float(square.clamp(min=0).sqrt())


@dataclass(frozen=True, slots=True)
class Dense:
    """A tensor of the parameter's shape, float32."""

    values: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter."""
        return tuple(self.values.shape)

    def dense(self) -> Tensor:
        """The tensor."""
        return self.values

    def norm(self) -> float:
        """Frobenius norm."""
        return float(torch.linalg.vector_norm(self.values.double()))


Delta: TypeAlias = LowRank | Dense


def outer(linear: LinearMap, key: Float[Tensor, "... n_in"], value: Float[Tensor, "... n_out"]) -> LowRank:
    """The delta of W += Σ keyᵀ value for a linear map x W, whichever way its weight is stored.

    Args:
        linear: the linear map.
        key: one vector of its input side, or several [rank, n_in].
        value: as many vectors of its output side.
    """
    keys = key.detach().reshape(-1, linear.n_in).float().cpu()
    values = value.detach().reshape(-1, linear.n_out).float().cpu()
    if linear.stored_as_written:
        return LowRank(keys.T.contiguous(), values)
    return LowRank(values.T.contiguous(), keys)


def total(deltas: Sequence[Delta]) -> Delta:
    """The sum of deltas of one parameter; low-rank ones stay so as long as that is smaller than a full matrix."""
    thin = [delta for delta in deltas if isinstance(delta, LowRank)]
    rank = sum(delta.left.shape[1] for delta in thin)
    rows, *columns = deltas[0].shape
    if len(thin) == len(deltas) and rank * (rows + columns[0]) < rows * columns[0]:
        return LowRank(torch.cat([delta.left for delta in thin], 1), torch.cat([delta.right for delta in thin]))
    summed = torch.zeros(deltas[0].shape)
    for delta in deltas:
        summed += delta.dense()
    return Dense(summed)

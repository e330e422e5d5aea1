"""Changes of matrices as sums of outer products, and forwards of a model in which every edit has its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from engramscope.edit.matrices import LinearMap
from engramscope.models.hooks import Hook, attached


@dataclass(frozen=True, slots=True)
class Factors:
    """The change of one matrix W [n_in, n_out] for several edits: ΔW = Σ_r left_r right_rᵀ.

    Attributes:
        left: [edits, rank, n_in].
        right: [edits, rank, n_out].
    """

    left: Float[Tensor, "edits rank n_in"]
    right: Float[Tensor, "edits rank n_out"]

    def matrix(self) -> Float[Tensor, "edits n_in n_out"]:
        """ΔW of each edit."""
        return self.left.mT @ self.right


@contextmanager
def edited(maps: Sequence[LinearMap], factors: Sequence[Factors]) -> Iterator[None]:
    """Forwards in which y = x (W + ΔW) + b at every map, with the ΔW of the edit that a row belongs to.

    The product x ΔW is added to what the module gives, so that many edits share one forward, W is never copied, and
    gradients reach whatever the factors were computed from.

    Args:
        maps: linear maps of a model.
        factors: for each map. The rows of a forward are those of the first edit, then as many of the second, and so on.
    """
    hooks = [hook for linear, change in zip(maps, factors, strict=True) for hook in _added(linear, change)]
    with attached(hooks):
        yield


def _added(linear: LinearMap, change: Factors) -> list[Hook]:
    given: list[Tensor] = []

    def keep(value: Tensor) -> None:
        given[:] = [value]

    def add(value: Tensor) -> Tensor:
        (x,) = given
        given.clear()
        wide = x.to(change.left.dtype).reshape(len(change.left), -1, linear.n_in)
        added = (wide @ change.left.mT) @ change.right
        return (value.to(added.dtype) + added.reshape(value.shape)).to(value.dtype)

    return [Hook(linear.module, "input", keep), Hook(linear.module, "output", add)]

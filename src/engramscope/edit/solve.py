"""Solve with a second moment that is nearly singular, without inverting it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from scipy.linalg import get_lapack_funcs
from torch import Tensor

from engramscope.errors import InputError

#: share of the mean of the diagonal that is added to it
EPS = 1e-6
_ROWS = 512


class Solver:
    """X with (C + eps · mean(diag C) · I) X = B, by Cholesky in float64.

    Args:
        matrix: C [n, n], symmetric, positive semidefinite.
        eps: what is added to the diagonal, as a share of its mean.
        device: where to solve; the CPU where it knows no float64.

    Attributes:
        eps: as given.
        condition: the condition number of what is solved with, in the 1-norm, estimated by LAPACK to within a small
            factor.

    Raises:
        InputError: the matrix is not positive definite; take more tokens or a larger eps.
    """

    def __init__(self, matrix: Float[Tensor, "n n"], eps: float = EPS, device: torch.device | None = None) -> None:
        self.eps = eps
        where = torch.device("cpu") if device is None or device.type == "mps" else device
        regular = matrix.to(where, torch.float64)
        kept = regular.diagonal().clone()
        # in place and taken back, because a copy of a wide layer's matrix is gigabytes
        regular.diagonal().add_(eps * float(kept.mean()))
        norm = max(float(rows.abs().sum(1).amax()) for rows in regular.split(_ROWS))
        self._factor, info = torch.linalg.cholesky_ex(regular)
        regular.diagonal().copy_(kept)
        if int(info):
            raise InputError(
                f"The second moment of {len(matrix)} neurons is singular, so nothing can be solved with it: measure it "
                "on more tokens (option 'tokens'), or add more to its diagonal (option 'eps')."
            )
        self.condition = _condition(self._factor, norm)

    def solve(self, right: Float[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
        """The solution for every row, float64, on the device of the solver."""
        wanted = right.to(self._factor.device, torch.float64)
        return torch.cholesky_solve(wanted.T, self._factor).T

    def regularised(self, keys: Float[Tensor, "rows n"], weight: float) -> Float[Tensor, "rows n"]:
        """X with (weight · C' + Kᵀ K) Xᵀ = Kᵀ, where C' is what this solver solves with; float64.

        With fewer keys than neurons by the identity of Woodbury, so that the one factor serves for any number of keys:
        X = (I + K Yᵀ)⁻¹ Y, Y = K C'⁻¹ / weight. Otherwise by a factor of the sum.

        Args:
            keys: K, a key in every row.
            weight: of C', above 0.
        """
        given = keys.to(self._factor.device, torch.float64)
        if len(given) < given.shape[1]:
            return gathered(given, self.solve(given) / weight)
        summed = torch.addmm(given.T @ given, self._factor, self._factor.T, alpha=weight)
        return torch.cholesky_solve(given.T, torch.linalg.cholesky(summed)).T


def gathered(keys: Float[Tensor, "rows n"], solved: Float[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
    """(I + K Yᵀ)⁻¹ Y for K Yᵀ symmetric and positive semidefinite: what is left for each key beside the others."""
    among = keys @ solved.T
    among = (among + among.T) / 2
    among.diagonal().add_(1.0)
    return torch.cholesky_solve(solved, torch.linalg.cholesky(among))


def _condition(factor: Tensor, norm: float) -> float:
    # LAPACK reads columns: the lower factor, row by row, is its upper one
    upper = factor.cpu().numpy().T
    (estimate,) = get_lapack_funcs(("pocon",), (upper,))
    reciprocal, _ = estimate(upper, norm, uplo="U")
    return 1.0 / reciprocal if reciprocal > 0 else float("inf")

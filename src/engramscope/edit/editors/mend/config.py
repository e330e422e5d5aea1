"""Settings of the network of MEND."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

#: rank of the residual layers in the paper
PUBLISHED_RANK = 1920


class MendSettings(BaseModel):
    """Settings of the network.

    Attributes:
        rank: of the residual layers; None for 1,920, but at most a tenth of the rows and columns of the matrix
            together, which is 128 for a matrix of 256 by 1,024 (and 800 for GPT-2 XL, with a third of the parameters).
        layers: residual layers.
        alpha: α at first, the factor of the change. It is negative, so that the untrained editor goes down the loss;
            the release begins at +1e-4, which is a step up, and lets training turn it round.
        last_relu: whether the last layer has a relu, as in eq. 3; without it, as in the release, training is faster.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: Annotated[int, Field(ge=1)] | None = None
    layers: Annotated[int, Field(ge=1)] = 2
    alpha: float = -1e-4
    last_relu: bool = False

    def rank_for(self, n_in: int, n_out: int) -> int:
        """The rank of the layers of one shape."""
        return self.rank if self.rank is not None else min(PUBLISHED_RANK, max(1, (n_in + n_out) // 10))

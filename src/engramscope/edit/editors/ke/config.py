"""Settings of the network of KE."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_Size = Annotated[int, Field(ge=1)]


class KeSettings(BaseModel):
    """Settings of the network; the defaults are for models narrower than 1,024.

    Attributes:
        hidden: of the LSTM, each way.
        z: size of the vector that the words of the edit become.
        inner: size of the layer in each matrix's head.
        scale: s_max, the most that the gate lets through. Published is 1. Behind a softmax over the inputs a network
            then needs hundreds of steps before its edits are large enough; with 10 it needs fifty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: _Size = 128
    z: _Size = 256
    inner: _Size = 128
    scale: Annotated[float, Field(gt=0)] = 10.0

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
        scale: s_max, the most that the gate lets through.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: _Size = 128
    z: _Size = 256
    inner: _Size = 128
    scale: Annotated[float, Field(gt=0)] = 1.0

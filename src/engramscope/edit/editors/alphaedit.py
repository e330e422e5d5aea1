"""AlphaEdit: MEMIT's edit kept to directions that the model's other knowledge hardly uses (Fang et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from engramscope.edit._base import Editor, EditorOptions, Progress
from engramscope.edit.defaults import resolved
from engramscope.edit.edit import Edit
from engramscope.edit.matrices import down_projection
from engramscope.edit.solve import gathered
from engramscope.edit.solvers import Known, thin_note
from engramscope.edit.spread import KeySide, Spread, SpreadOptions, chosen_layers, spread
from engramscope.errors import InputError
from engramscope.models.model import Model
from engramscope.records.fact import Fact

#: found by trying on training records; these models look facts up at the last token (see `rank_one.BUNDLED`)
_FOUND: Mapping[str, Any] = {
    "layers": (0,), "token": "last", "null_share": 0.05, "penalty": 1.0, "clamp": 4.0, "steps": 60, "stop": 0.02,
}  # fmt: skip
_BUNDLED: Mapping[str, Mapping[str, Any]] = {"mini": _FOUND, "mini-llama": _FOUND}


class AlphaEditOptions(SpreadOptions):
    """Options of AlphaEdit, besides those of every edit that is shared out.

    Attributes:
        null_share: the directions of C with the smallest eigenvalues, which together hold at most this share of its
            trace, are the ones that may be written to.
        penalty: of the size of the change.
    """

    null_share: float = Field(0.02, gt=0, lt=1)
    penalty: float = Field(10.0, gt=0)


class AlphaEdit(Editor):
    """AlphaEdit: ΔW = E (P K)ᵀ (P K Kᵀ + L₂ I)⁻¹, P the projection onto the quiet directions of C.

    Deviations: the release calls a direction quiet when its eigenvalue is below 0.02, which depends on the scale of the
    activations; here it is a share of the trace. The keys of earlier edits are not accumulated: all facts of one call
    are solved together, and edits that were applied before are part of the model. What the release has for LLaMA-3
    (layers 4 to 8, rate 0.1) is no default, because a model's type and depth do not tell it from LLaMA-2.

    Source: Fang et al. 2025 (AlphaEdit: Null-Space Constrained Knowledge Editing), equation 13.
    """

    Options: ClassVar[type[EditorOptions]] = AlphaEditOptions
    source = "Fang et al. 2025 (AlphaEdit: Null-Space Constrained Knowledge Editing), equation 13"
    joint: ClassVar[Literal["one", "many"]] = "many"

    def __init__(self, name: str, options: EditorOptions, preset: str | None = None) -> None:
        super().__init__(name, options, preset)
        self._known = Known()

    def settled(self, model: Model) -> AlphaEditOptions:
        """The options with what is published, or was found, for this model, and its layers.

        Raises:
            InputError: there is no such layer.
        """
        assert isinstance(self.options, AlphaEditOptions)
        options = resolved(self.options, model, {}, _BUNDLED)
        return options.model_copy(update={"layers": chosen_layers(model, options)[0]})

    def places(self, model: Model) -> tuple[str, ...]:
        """The matrices of the layers that are edited.

        Raises:
            InputError: there is no such layer, or its MLP has no single down projection.
        """
        return tuple(down_projection(model, layer).name for layer in self.settled(model).layers or ())

    def _compute(self, model: Model, facts: list[Fact], seed: int, progress: Progress | None) -> Edit:
        assert isinstance(self.options, AlphaEditOptions)
        options = resolved(self.options, model, {}, _BUNDLED)
        layers, note = chosen_layers(model, options)
        moment_of = self._known.moments(model, layers, options, progress)

        def quiet(layer: int) -> tuple[Tensor, str | None]:
            moment = moment_of(layer)
            # with few tokens most directions are quiet only because nothing was heard of them
            return quiet_directions(moment.matrix, options.null_share), thin_note(moment.tokens, len(moment.matrix))

        # the first at once: where nothing can be written to, it is said before the values are optimised
        waiting = {layers[0]: quiet(layers[0])}

        def key_side(layer: int, keys: Tensor) -> KeySide:
            basis, thin = waiting.pop(layer, None) or quiet(layer)
            projected = keys.double() @ basis.to(keys.device) @ basis.to(keys.device).T
            return KeySide(gathered(projected, projected / options.penalty), basis.shape[1], thin)

        what = Spread(layers, options, seed, (note,) if note else ())
        return spread(self, model, facts, what, key_side, self._known, about="quiet_directions", progress=progress)


def quiet_directions(matrix: Float[Tensor, "n n"], share: float) -> Float[Tensor, "n quiet"]:
    """Eigenvectors of the smallest eigenvalues that together hold at most a share of the trace, float64.

    Args:
        matrix: symmetric, positive semidefinite.
        share: of the trace, between 0 and 1.

    Raises:
        InputError: there is none: every direction holds more than that.
    """
    values, vectors = torch.linalg.eigh(matrix.double())
    held = values.clamp(min=0).cumsum(0)
    count = int((held <= share * held[-1]).sum())
    if not count:
        raise InputError(
            f"No direction of the keys holds less than {share:g} of their second moment, so nothing may be written to; "
            "raise the option 'null_share'."
        )
    return vectors[:, :count]


COMPONENT = AlphaEdit

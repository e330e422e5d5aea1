"""Fine-tuning of one layer's down projection inside an L∞ ball (FT+L)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field

from engramscope.edit._base import Editor, Progress
from engramscope.edit.descent import DescentOptions, edit_by_descent, settled_descent, trained_names
from engramscope.edit.edit import Edit
from engramscope.edit.layers import GPT2_LARGE, GPT2_MEDIUM, GPT2_XL, GPTJ, chosen_layer
from engramscope.edit.matrices import down_projection
from engramscope.models.model import Model
from engramscope.records.fact import Fact

_LAYERS = {GPT2_XL: 0, GPT2_LARGE: 0, GPT2_MEDIUM: 0, GPTJ: 0}
_RADII = {GPT2_XL: 5e-4, GPT2_LARGE: 1e-3, GPT2_MEDIUM: 2e-3, GPTJ: 5e-5}
_DEPTH = 0.0
#: of the root mean square of W, where no radius is published
_SHARE = 0.15


class BallOptions(DescentOptions):
    """Options of FT+L.

    Attributes:
        radius: how far each weight may move (ε); None for the published one, or a share of the weights' size.
        batch: facts of one step, where there are several.
    """

    radius: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    batch: int = Field(default=64, ge=1)


class ConstrainedFineTuning(Editor):
    """FT+L: as FT, and after each step every weight is put back into [W − ε, W + ε].

    Several facts are learnt together, as in the release, so that there is one ball, around the weights before the edit.
    No weight leaves it, neither by the delta nor by the sum W + Δ as it is rounded when the edit is applied.

    Source: Meng et al. 2022 (ROME), Table 4 and appendix E.1, after Zhu et al. 2020; `baselines/ft` of the release.
    Deviations of the default: those of FT. The preset `ft-2022` is the release, whose ball holds the bias, too. The
    variant of the paper that trains attention (`c_attn`) is not offered.
    """

    Options = BallOptions
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "ft-2022": {"lr": 5e-4, "objective": "last_prompt_token", "bias": True}
    }
    source = "Meng et al. 2022, Table 4 (FT+L); Zhu et al. 2020"
    joint = "many"

    def settled(self, model: Model) -> BallOptions:
        """The options with the layer, the learning rate and the radius of this model.

        Raises:
            InputError: there is no such layer, or its MLP has no single down projection.
        """
        assert isinstance(self.options, BallOptions)
        layer, _ = chosen_layer(model, self.options.layer, _LAYERS, _DEPTH)
        radius, _ = _radius(model, layer, self.options.radius)
        return self.options.model_copy(update=settled_descent(model, self.options, layer) | {"radius": radius})

    def places(self, model: Model) -> tuple[str, ...]:
        """The matrix of the layer that is trained, and its bias where that is trained, too.

        Raises:
            InputError: there is no such layer, or its MLP has no single down projection.
        """
        assert isinstance(self.options, BallOptions)
        layer, _ = chosen_layer(model, self.options.layer, _LAYERS, _DEPTH)
        return trained_names(model, layer, bias=self.options.bias)

    def _compute(self, model: Model, facts: list[Fact], seed: int, progress: Progress | None) -> Edit:
        assert isinstance(self.options, BallOptions)
        layer, note = chosen_layer(model, self.options.layer, _LAYERS, _DEPTH)
        radius, other = _radius(model, layer, self.options.radius)
        notes = [sentence for sentence in (note, other) if sentence]
        return edit_by_descent(
            self, model, facts, seed, progress, options=self.options, layer=layer, radius=radius,
            batch=self.options.batch, notes=notes,
        )  # fmt: skip


def _radius(model: Model, layer: int, given: float | None) -> tuple[float, str | None]:
    """ε, and a sentence about it where nobody chose it."""
    kind = (model.anatomy.model_type, model.anatomy.n_layers)
    published = _RADII.get(kind)
    if given is not None or published is not None:
        return given or published or 0.0, None
    weight = down_projection(model, layer).weight.detach()
    size = float(torch.linalg.vector_norm(weight, dtype=torch.float64)) / weight.numel() ** 0.5
    radius = float(f"{_SHARE * size:.2g}")
    return radius, (
        f"No radius is published for {model.name}: ε = {radius:g} was used, {_SHARE:g} of the root mean square of the "
        "weights. A larger one edits more surely and leaves less else as it was."
    )


COMPONENT = ConstrainedFineTuning

"""MEND as an editor: what its network is built from, and how it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel

from engramscope.edit.editors.mend.config import PUBLISHED_RANK, MendSettings
from engramscope.edit.editors.mend.network import MendNetwork
from engramscope.edit.hyper.editor import TrainedEditor
from engramscope.edit.hyper.settings import SMALL
from engramscope.edit.matrices import LinearMap
from engramscope.models.model import Model


class Mend(TrainedEditor):
    """MEND: ΔW = α Σ_b x̃_b g̃_bᵀ, where a network makes (x̃, g̃) of the normalised token pairs (x, g) of the gradient.

    Source: Mitchell, Lin, Bosselut, Finn & Manning 2022, "Fast Model Editing at Scale", eq. 2–4, and its release.

    Deviations:
        - α begins at −1e-4 instead of +1e-4 (`MendSettings.alpha`).
        - The last layer has no relu, as in the release; eq. 3 has one (`MendSettings.last_relu`). Scale and shift of
          a matrix stand inside the relu, as in both.
        - V of the residual layers is drawn with variance 1 / size instead of 1, so that larger rates can be used.
        - The moments for the normalisation are kept in float64 and updated for many tokens at once.
        - Padding is masked, and no token is added to the vocabulary; the model stays in evaluation mode.
        - Models narrower than 1,024 have other settings of training, with which it takes minutes.
    """

    Network = MendSettings
    source = "Mitchell et al. 2022, Fast Model Editing at Scale, eq. 2-4"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"mend-cf": {"corpus": "counterfact"}}

    @classmethod
    def build(cls, settings: BaseModel, model: Model, maps: list[LinearMap]) -> MendNetwork:
        """The network: matrices of one shape share the residual layers."""
        assert isinstance(settings, MendSettings)
        shapes = [(linear.n_in, linear.n_out) for linear in maps]
        ranks = {shape: settings.rank_for(*shape) for shape in shapes}
        return MendNetwork(shapes, ranks, settings.layers, settings.alpha, settings.last_relu)

    @classmethod
    def training_defaults(cls, model: Model) -> Mapping[str, Any]:
        """For wide models the published settings; the paper trains for days."""
        if model.anatomy.d_model < SMALL:
            return {}
        return {
            "rank": PUBLISHED_RANK, "learning_rate": 1e-6, "alpha_rate": 1e-4, "decay": False, "batch": 1,
            "accumulate": 10, "clip": 100.0, "edit_weight": 0.1, "texts": 1, "mixed": 0.0, "tokens": 10,
            "continuation": "model", "steps": 50_000, "validate_every": 500, "patience": 4,
        }  # fmt: skip

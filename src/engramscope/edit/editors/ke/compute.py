"""KE as an editor: what its network is built from, and how it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel

from engramscope.edit.editors.ke.config import KeSettings
from engramscope.edit.editors.ke.network import KeNetwork
from engramscope.edit.hyper.editor import TrainedEditor
from engramscope.edit.hyper.settings import SMALL
from engramscope.edit.matrices import LinearMap
from engramscope.models.model import Model


class Ke(TrainedEditor):
    """KE: ΔW = s_max σ(η) (G ∘ A + B), where A, B and η are made from the words of the edit.

    Source: De Cao, Aziz & Titov 2021, "Editing Factual Knowledge in Language Models", eq. 4–5, in the form of the
    baseline of Mitchell et al. 2022 and Meng et al. 2022 (`efk`): the words are prompt and target, only the MLPs of the
    last blocks are edited, and the loss is that of MEND.

    Deviations:
        - The softmax runs over the inputs of a matrix, whichever way it is stored. The release runs it over the rows of
          the stored one, which are the inputs of GPT-2's `Conv1D`, so this is KE as Table 4 has it; for `nn.Linear`
          they are the outputs. On the bundled `mini` a softmax over the outputs learned next to nothing.
        - The words are embedded with the model's own frozen embedding; the release trains a copy of it.
        - Several edits are conditioned on in one call; what comes out for each is the same as by itself.
        - Vectors (biases) are not edited, as in the baseline.
    """

    Network = KeSettings
    source = "De Cao et al. 2021, Editing Factual Knowledge in Language Models, eq. 4-5"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"ke-cf": {"corpus": "counterfact"}}

    @classmethod
    def build(cls, settings: BaseModel, model: Model, maps: list[LinearMap]) -> KeNetwork:
        """The network: one reader of the words, one head for each matrix."""
        assert isinstance(settings, KeSettings)
        shapes = [(linear.n_in, linear.n_out) for linear in maps]
        width = model.hf.get_input_embeddings().weight.shape[1]
        return KeNetwork(shapes, width, settings.hidden, settings.z, settings.inner, settings.scale)

    @classmethod
    def training_defaults(cls, model: Model) -> Mapping[str, Any]:
        """For wide models the published settings of the baseline, for others more weight on the edit than for MEND."""
        if model.anatomy.d_model < SMALL:
            return {"edit_weight": 3.0, "steps": 800}
        return {
            "hidden": 512, "z": 768, "inner": 512, "scale": 1.0, "learning_rate": 1e-5, "decay": False, "batch": 1,
            "accumulate": 10, "clip": 100.0, "edit_weight": 0.1, "texts": 1, "mixed": 0.0, "steps": 50_000,
            "validate_every": 500, "patience": 4, "continuation": "model",
        }  # fmt: skip

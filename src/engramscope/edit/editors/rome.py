"""ROME: one fact as one key and one value in one MLP matrix, by a closed form (Meng et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from engramscope.edit._base import Editor, EditorOptions, Progress
from engramscope.edit.edit import Edit
from engramscope.edit.matrices import down_projection
from engramscope.edit.rank_one import RankOneOptions, rank_one, rome_place, settled_rome
from engramscope.edit.solvers import Known
from engramscope.models.model import Model
from engramscope.records.fact import Fact


class Rome(Editor):
    """ROME: W ← W + u δ / (u · k*), u = C⁻¹ k*, in one block's down projection.

    The default differs from the release where that is known to do harm: the key k* that u is made from, the mean over
    the prompt and the prompt after sampled texts, is also the one that the update is divided by. The release divides by
    the key of the prompt alone, and the quotient may be nearly zero; the preset "rome-2022" does so, too, and adds
    nothing to the diagonal of C. In both, texts are drawn from a seed, and C is measured on a stated number of tokens.
    EasyEdit's settings for LLaMA, Mistral and Qwen (layer 5, 25 steps, decay 0.001) are no defaults: they come from no
    study of layers.

    Source: Meng et al. 2022, equations 2 to 4; consistent keys: Gupta et al. 2024.
    """

    Options: ClassVar[type[EditorOptions]] = RankOneOptions
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"rome-2022": {"denominator": "prompt", "eps": 0.0}}
    source = "Meng et al. 2022 (Locating and Editing Factual Associations in GPT), equations 2 to 4"

    def __init__(self, name: str, options: EditorOptions, preset: str | None = None) -> None:
        super().__init__(name, options, preset)
        self._known = Known()

    def settled(self, model: Model) -> EditorOptions:
        """The options with what is published, or was found, for this model, and its layer.

        Raises:
            InputError: there is no such layer.
        """
        return settled_rome(model, self.options)

    def places(self, model: Model) -> tuple[str, ...]:
        """The matrix of the layer that is edited.

        Raises:
            InputError: there is no such layer, or its MLP has no single down projection.
        """
        assert isinstance(self.options, RankOneOptions)
        _, place, _ = rome_place(model, self.options)
        return (down_projection(model, place.layer).name,)

    def _compute(self, model: Model, facts: list[Fact], seed: int, progress: Progress | None) -> Edit:
        assert isinstance(self.options, RankOneOptions)
        options, place, note = rome_place(model, self.options)
        notes = [note] if note else []
        return rank_one(self, model, facts[0], place, options, seed, self._known, notes=notes,
                        progress=progress)  # fmt: skip


COMPONENT = Rome

"""Fine-tuning of one layer's down projection (FT)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from engramscope.edit._base import Editor, Progress
from engramscope.edit.descent import DescentOptions, edit_by_descent, settled_descent, trained_names
from engramscope.edit.edit import Edit
from engramscope.edit.layers import GPT2_XL, GPTJ, chosen_layer
from engramscope.models.model import Model
from engramscope.records.fact import Fact

_LAYERS = {GPT2_XL: 1, GPTJ: 21}
_DEPTH = 0.0


class FineTuning(Editor):
    """FT: W ← argmin −(1/n) Σ log P(target_i | prompt, target_<i) by Adam, from W, in a few steps.

    Several facts are learnt one after another, each from where the one before it ended; the release trains on
    batches of up to 64, which in 25 steps does not learn all of them.

    Source: Meng et al. 2022 (ROME), Table 4 and appendix E.1, after Zhu et al. 2020; `baselines/ft` of the release.
    Deviations of the default: teacher forcing over all tokens of the target, where the release asks the last token of
    the prompt for all of them; the weight alone is trained, where the release, which selects parameters by a part of
    their name, trains the bias, too. The preset `ft-2022` does both as the release does. The target's tokens are
    those that follow the prompt; the release encodes it by itself, which on a tokenizer that puts special tokens in
    front asks for these as well. The paper's stopping value 0.03 is 0.01 in the release and here.
    """

    Options = DescentOptions
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "ft-2022": {"lr": 5e-4, "objective": "last_prompt_token", "bias": True}
    }
    source = "Meng et al. 2022, Table 4 (FT); Zhu et al. 2020"

    def settled(self, model: Model) -> DescentOptions:
        """The options with the layer and the learning rate of this model.

        Raises:
            InputError: there is no such layer, or its MLP has no single down projection.
        """
        assert isinstance(self.options, DescentOptions)
        layer, _ = chosen_layer(model, self.options.layer, _LAYERS, _DEPTH)
        return self.options.model_copy(update=settled_descent(model, self.options, layer))

    def places(self, model: Model) -> tuple[str, ...]:
        """The matrix of the layer that is trained, and its bias where that is trained, too.

        Raises:
            InputError: there is no such layer, or its MLP has no single down projection.
        """
        assert isinstance(self.options, DescentOptions)
        layer, _ = chosen_layer(model, self.options.layer, _LAYERS, _DEPTH)
        return trained_names(model, layer, bias=self.options.bias)

    def _compute(self, model: Model, facts: list[Fact], seed: int, progress: Progress | None) -> Edit:
        assert isinstance(self.options, DescentOptions)
        layer, note = chosen_layer(model, self.options.layer, _LAYERS, _DEPTH)
        notes = [note] if note else []
        return edit_by_descent(self, model, facts, seed, progress, options=self.options, layer=layer, notes=notes)


COMPONENT = FineTuning

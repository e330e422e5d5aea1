"""MEMIT: many facts at once, shared out over the MLP matrices of several layers (Meng et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from engramscope.edit._base import Editor, EditorOptions, Progress
from engramscope.edit.defaults import resolved
from engramscope.edit.edit import Edit
from engramscope.edit.layers import GPT2_XL, GPTJ
from engramscope.edit.matrices import down_projection
from engramscope.edit.solve import gathered
from engramscope.edit.solvers import Known
from engramscope.edit.spread import KeySide, Spread, SpreadOptions, chosen_layers, spread
from engramscope.models.model import Model
from engramscope.records.fact import Fact

#: hparams/MEMIT of the release
_PUBLISHED: Mapping[tuple[str, int], Mapping[str, Any]] = {
    GPT2_XL: {"weight": 20_000.0},
    GPTJ: {"weight": 15_000.0, "steps": 25},
}
#: found by trying on training records; these models look facts up at the last token (see `rank_one.BUNDLED`)
_FOUND: Mapping[str, Any] = {
    "layers": (0,), "token": "last", "weight": 20.0, "clamp": 4.0, "steps": 60, "stop": 0.02,
}  # fmt: skip
_BUNDLED: Mapping[str, Mapping[str, Any]] = {"mini": _FOUND, "mini-llama": _FOUND}


class MemitOptions(SpreadOptions):
    """Options of MEMIT, besides those of every edit that is shared out.

    Attributes:
        weight: λ, how much what the matrices do now counts beside the new facts.
        mom2: use the second moment of keys; without it C is the identity.
    """

    weight: float = Field(15_000.0, gt=0)
    mom2: bool = True


class Memit(Editor):
    """MEMIT: ΔW = E Kᵀ (λ C + K Kᵀ)⁻¹ at each of several layers, from the first up.

    Everything is solved in float64 with one factor of C for each layer, by the identity of Woodbury where there are
    fewer facts than neurons. Deviations: the texts before the prompts are drawn from a seed, eps · mean(diag C) is
    added to the diagonal of C, and C is measured on a stated number of tokens. EasyEdit's settings for LLaMA, Mistral
    and Qwen (layers 4 to 8, clamp 4, decay 0.001) are no defaults.

    Source: Meng et al. 2023 (Mass-Editing Memory in a Transformer), equation 14 and algorithm 1.
    """

    Options: ClassVar[type[EditorOptions]] = MemitOptions
    source = "Meng et al. 2023 (Mass-Editing Memory in a Transformer), equation 14 and algorithm 1"
    joint: ClassVar[Literal["one", "many"]] = "many"

    def __init__(self, name: str, options: EditorOptions, preset: str | None = None) -> None:
        super().__init__(name, options, preset)
        self._known = Known()

    def settled(self, model: Model) -> MemitOptions:
        """The options with what is published, or was found, for this model, and its layers.

        Raises:
            InputError: there is no such layer.
        """
        assert isinstance(self.options, MemitOptions)
        options = resolved(self.options, model, _PUBLISHED, _BUNDLED)
        return options.model_copy(update={"layers": chosen_layers(model, options)[0]})

    def places(self, model: Model) -> tuple[str, ...]:
        """The matrices of the layers that are edited.

        Raises:
            InputError: there is no such layer, or its MLP has no single down projection.
        """
        return tuple(down_projection(model, layer).name for layer in self.settled(model).layers or ())

    def _compute(self, model: Model, facts: list[Fact], seed: int, progress: Progress | None) -> Edit:
        assert isinstance(self.options, MemitOptions)
        options = resolved(self.options, model, _PUBLISHED, _BUNDLED)
        layers, note = chosen_layers(model, options)
        solver_of = self._known.solvers(model, layers, options, progress) if options.mom2 else None

        def key_side(layer: int, keys: Tensor) -> KeySide:
            if solver_of is None:
                return KeySide(gathered(keys.double(), keys.double() / options.weight))
            one = solver_of(layer)
            return KeySide(one.solver.regularised(keys, options.weight), one.said(), one.note())

        what = Spread(layers, options, seed, (note,) if note else ())
        return spread(self, model, facts, what, key_side, self._known, about="second_moments", progress=progress)


COMPONENT = Memit

"""Which layer is edited where nobody said: the published one, or one at a usual depth."""

from __future__ import annotations

from collections.abc import Mapping

from engramscope.errors import SiteError
from engramscope.models.model import Model

#: (type of the model, number of layers) of the models in the literature's tables
GPT2_MEDIUM, GPT2_LARGE, GPT2_XL = ("gpt2", 24), ("gpt2", 36), ("gpt2", 48)
GPTJ, NEOX_20B = ("gptj", 28), ("gpt_neox", 44)


def chosen_layer(
    model: Model, given: int | None, published: Mapping[tuple[str, int], int], depth: float
) -> tuple[int, str | None]:
    """The layer to edit, and a sentence about it where nobody chose it.

    Args:
        model: the model.
        given: the layer that was asked for; None for a default.
        published: (type, number of layers) -> the layer of the paper.
        depth: where the default lies for all other models, as a share of the layers.

    Raises:
        SiteError: there is no such layer.
    """
    count, kind = model.anatomy.n_layers, model.anatomy.model_type
    if given is not None:
        if not 0 <= given < count:
            raise SiteError(f"There is no layer {given}: {model.name} has {count} layers, 0 to {count - 1}.")
        return given, None
    if (kind, count) in published:
        return published[kind, count], None
    layer = min(count - 1, round(depth * (count - 1)))
    return layer, f"No layer is published for {model.name}: layer {layer} of {count} was edited. Try others."

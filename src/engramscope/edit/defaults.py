"""Options that nobody gave: the published ones of a model, or those that were found for a bundled one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from engramscope.edit._base import EditorOptions
from engramscope.models.model import Model

Options = TypeVar("Options", bound=EditorOptions)


def resolved(
    options: Options, model: Model, published: Mapping[tuple[str, int], Mapping[str, Any]],
    bundled: Mapping[str, Mapping[str, Any]],
) -> Options:  # fmt: skip
    """The options with the values of this model where nobody gave any.

    Args:
        options: as they were given.
        model: the model.
        published: (type, number of layers) -> options of the paper's or the release's settings.
        bundled: name of a bundled model -> options that were found to work for it.
    """
    if model.source == "bundled" and model.name in bundled:
        table = bundled[model.name]
    else:
        table = published.get((model.anatomy.model_type, model.anatomy.n_layers), {})
    return options.model_copy(
        update={name: value for name, value in table.items() if name not in options.model_fields_set}
    )

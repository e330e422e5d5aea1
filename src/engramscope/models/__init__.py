"""Load a causal language model, name its parts, and give access to its sites."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engramscope.models.load import load_config, load_model, load_tokenizer, skeleton_sizes
    from engramscope.models.model import Model

__all__ = ["Model", "load_config", "load_model", "load_tokenizer", "skeleton_sizes"]

_HOMES = {
    "Model": "model",
    "load_config": "load",
    "load_model": "load",
    "load_tokenizer": "load",
    "skeleton_sizes": "load",
}


def __getattr__(name: str) -> Any:
    # on first use: `models.anatomy` and `models.site` are needed where nothing is loaded
    if name not in _HOMES:
        raise AttributeError(f"module 'engramscope.models' has no attribute {name!r}")
    return getattr(import_module(f"engramscope.models.{_HOMES[name]}"), name)

"""Fine-tune a causal language model on a corpus of abstracts."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engramscope.finetune.run import FinetuneResult, run_finetune
    from engramscope.finetune.settings import Settings, preset_names, resolve_settings

__all__ = ["FinetuneResult", "Settings", "preset_names", "resolve_settings", "run_finetune"]

_HOMES = {
    "FinetuneResult": "run",
    "run_finetune": "run",
    "Settings": "settings",
    "preset_names": "settings",
    "resolve_settings": "settings",
}


def __getattr__(name: str) -> Any:
    # on first use: the settings are needed where nothing is trained, and the training process needs no page
    if name not in _HOMES:
        raise AttributeError(f"module 'engramscope.finetune' has no attribute {name!r}")
    return getattr(import_module(f"engramscope.finetune.{_HOMES[name]}"), name)

"""Engramscope finds where a language model keeps a piece of knowledge, and says how sure it is.

    from engramscope import PairSet, load_model, make_pairs, patch, run_study

    model = load_model("mini")
    result = patch(model, make_pairs("clap_epilepsy"), "z", heads="each")

Names are imported when they are first used, so that importing the package is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engramscope.models import Model, load_model
    from engramscope.pairs import Pair, PairSet, read_pairs
    from engramscope.patching import PatchResult, patch
    from engramscope.study import StudyResult, check_study, run_study
    from engramscope.tasks import make_pairs

__all__ = [
    "Model",
    "Pair",
    "PairSet",
    "PatchResult",
    "StudyResult",
    "check_study",
    "load_model",
    "make_pairs",
    "patch",
    "read_pairs",
    "run_study",
]

_HOMES = {
    "Model": "models",
    "load_model": "models",
    "Pair": "pairs",
    "PairSet": "pairs",
    "read_pairs": "pairs",
    "PatchResult": "patching",
    "patch": "patching",
    "StudyResult": "study",
    "check_study": "study",
    "run_study": "study",
    "make_pairs": "tasks",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'engramscope' has no attribute {name!r}")
    return getattr(import_module(f"engramscope.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

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
    from engramscope.comparison import Comparison, compare_studies
    from engramscope.locate.attention_scores import AttentionScores, attention_scores
    from engramscope.locate.attention_view import AttentionView, Restore, attention_view
    from engramscope.locate.attribution import direct_attribution
    from engramscope.locate.contributions import Attribution
    from engramscope.locate.lens import logit_lens
    from engramscope.models import Model, load_model
    from engramscope.pairs import Pair, PairSet, read_pairs
    from engramscope.patching import PatchResult, patch
    from engramscope.practices import Practices, run_practices
    from engramscope.recommendation import Recommendation, recommend_layers
    from engramscope.results.classes import class_effects
    from engramscope.study import StudyResult, check_study, run_study
    from engramscope.tasks import make_pairs

__all__ = [
    "AttentionScores",
    "AttentionView",
    "Attribution",
    "Comparison",
    "Model",
    "Pair",
    "PairSet",
    "PatchResult",
    "Practices",
    "Recommendation",
    "Restore",
    "StudyResult",
    "attention_scores",
    "attention_view",
    "check_study",
    "class_effects",
    "compare_studies",
    "direct_attribution",
    "load_model",
    "logit_lens",
    "make_pairs",
    "patch",
    "read_pairs",
    "recommend_layers",
    "run_practices",
    "run_study",
]

_HOMES = {
    "AttentionScores": "locate.attention_scores",
    "attention_scores": "locate.attention_scores",
    "AttentionView": "locate.attention_view",
    "Restore": "locate.attention_view",
    "attention_view": "locate.attention_view",
    "Attribution": "locate.contributions",
    "direct_attribution": "locate.attribution",
    "logit_lens": "locate.lens",
    "Comparison": "comparison",
    "compare_studies": "comparison",
    "Practices": "practices",
    "run_practices": "practices",
    "Recommendation": "recommendation",
    "recommend_layers": "recommendation",
    "class_effects": "results.classes",
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

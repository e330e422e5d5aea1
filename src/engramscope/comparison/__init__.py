"""Two finished studies side by side: two models, two corruptions, two kinds of pairs."""

from engramscope.comparison.page import Comparison, compare_studies

__all__ = ["Comparison", "compare_studies"]

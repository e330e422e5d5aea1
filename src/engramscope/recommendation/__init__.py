"""Which layers hold these facts? An answer with its interval, its stability, and what it does not mean."""

from engramscope.recommendation.run import Recommendation, recommend_layers

__all__ = ["Recommendation", "recommend_layers"]

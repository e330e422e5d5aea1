"""The best-practice comparison: one task under several corruptions, metrics and windows, side by side."""

from engramscope.practices.run import Practices, run_practices

__all__ = ["Practices", "run_practices"]

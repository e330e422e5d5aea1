"""From one score per acceptable answer to one number per pair."""

from __future__ import annotations

import math
from collections.abc import Sequence


def combine(scores: Sequence[float]) -> float:
    """Log probability that the model gives *one* of several acceptable answers.

    `combine(s) = ln Σ_a exp(s_a)`, computed as `m + ln Σ_a exp(s_a - m)` with `m = max s`, never through the
    underflowing probabilities themselves. One answer: its score, unchanged.

    Range (-inf, 0] as long as no answer is the beginning of another (those events are not disjoint and would be counted
    twice; `check_targets` names them); a sum that rounds above 0 is set to 0. NaN in any score gives NaN.

    Args:
        scores: log probability of each acceptable answer [n_answers], in nats, as given by `answer_log_prob`.

    Raises:
        ValueError: there is no score (an error of the caller).
    """
    values = [float(score) for score in scores]
    if not values:
        raise ValueError("combine needs the score of at least one answer")
    if len(values) == 1:
        return values[0]
    if any(math.isnan(value) for value in values):
        return math.nan
    highest = max(values)
    if math.isinf(highest):
        return highest
    return min(0.0, highest + math.log(math.fsum(math.exp(value - highest) for value in values)))

"""Where "no effect" lies on the scale of an estimate, and whether an effect can be tested against it at all."""

from __future__ import annotations

from engramscope.metrics import get_metric, metric_names

#: why cells of an unsigned metric have no p
UNSIGNED = (
    "the metric is a distance from the clean run, which any change moves the same way: "
    "the effect is described, not tested"
)


def is_loss(kind: str, direction: str) -> bool:
    """Whether an estimate is a recovery of noised runs: 1 = nothing happened, 0 = everything is lost."""
    return kind == "recovery" and direction == "noise"


def no_effect(kind: str, direction: str) -> float:
    """The estimate of a patch that changes nothing: 1 for a recovery when noising, else 0.

    Args:
        kind: "recovery" or "effect".
        direction: "denoise" or "noise".
    """
    return 1.0 if is_loss(kind, direction) else 0.0


def shown(estimate: float, kind: str, direction: str) -> float:
    """What is shown and ranked by: the estimate; for a recovery of noised runs the *loss*, `1 - recovery`.

    0 = the patch changes nothing, in both directions.
    """
    return 1.0 - estimate if is_loss(kind, direction) else estimate


def higher_is_better(metric: str) -> bool:
    """Whether more of a metric is better (`Metric.higher_is_better`).

    A name that no metric has (in a table that was made elsewhere) counts as one of which more is better.
    """
    return metric not in metric_names() or get_metric(metric).higher_is_better


def is_signed(metric: str) -> bool:
    """Whether a patch without meaning moves the metric up as often as down (`Metric.signed`).

    A name that no metric has (in a table that was made elsewhere) counts as signed.
    """
    return metric not in metric_names() or get_metric(metric).signed

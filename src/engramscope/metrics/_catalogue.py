"""The metrics by name; nothing is imported until one is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engramscope.registry import Registry

if TYPE_CHECKING:
    from engramscope.metrics._base import Metric

_PACKAGE = "engramscope.metrics"


def metric_names() -> tuple[str, ...]:
    """Names of all metrics, sorted; imports neither torch nor any metric."""
    return Registry(_PACKAGE, object, "metric").names()


def describe_metric(name: str) -> str:
    """The first docstring line of a metric's file, read without importing it (empty for third-party ones)."""
    return Registry(_PACKAGE, object, "metric").describe(name)


def get_metric(name: str) -> Metric:
    """The metric called `name`, ready to score.

    Raises:
        UnknownNameError: no such metric; names the nearest one.
        TypeError: the metric's file exposes no `COMPONENT`, a subclass of `Metric`.
    """
    from engramscope.metrics._base import Metric  # here, because it imports torch

    return Registry(_PACKAGE, Metric, "metric").get(name)()


def metric_name(metric: Metric) -> str:
    """The name of a metric: that of the file it lives in."""
    return type(metric).__module__.rsplit(".", 1)[-1]

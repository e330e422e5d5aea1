"""Numbers per pair from logits; one file each, found by its name.

Importing this package imports no torch; a metric's own file is imported when it is asked for.
"""

from engramscope.metrics._catalogue import describe_metric, get_metric, metric_name, metric_names
from engramscope.metrics._check import check_targets, target_remarks
from engramscope.metrics._combine import combine

__all__ = [
    "check_targets",
    "combine",
    "describe_metric",
    "get_metric",
    "metric_name",
    "metric_names",
    "target_remarks",
]

"""Published tables and figures as data: run again, measured, and compared."""

from __future__ import annotations

from engramscope.replications._file import Replication, parse_replication, read_replication, replication_names
from engramscope.replications._run import Reproduction, reproduce

__all__ = [
    "Replication",
    "Reproduction",
    "parse_replication",
    "read_replication",
    "replication_names",
    "reproduce",
]

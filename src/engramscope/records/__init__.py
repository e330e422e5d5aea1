"""Facts to be edited, and records that test an edit: what they are, and the files that hold them."""

from engramscope.records.fact import Fact
from engramscope.records.record import Record

__all__ = ["Fact", "Record"]

"""Facts to be edited, and records that test an edit: what they are, and the files that hold them."""

from engramscope.records.fact import Fact
from engramscope.records.read import Records, Unusable, read_records
from engramscope.records.record import Probe, Record
from engramscope.records.targets import with_drawn_targets
from engramscope.records.write import write_records

__all__ = ["Fact", "Probe", "Record", "Records", "Unusable", "read_records", "with_drawn_targets", "write_records"]

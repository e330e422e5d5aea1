"""Does locating help editing? Tracing effects against the success of edits, fact by fact and layer by layer."""

from engramscope.locate_edit.run import LocateEdit, run_locate_edit

__all__ = ["LocateEdit", "run_locate_edit"]

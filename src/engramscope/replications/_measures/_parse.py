"""From a name and options to a measure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engramscope.errors import StudyError
from engramscope.options import parse_options
from engramscope.registry import Registry
from engramscope.replications._measures._base import Measure, NumberOptions

MEASURES: Registry[Measure] = Registry("engramscope.replications._measures", Measure, "measure")


def parse_measure(name: str, options: Mapping[str, Any], where: str = "measure") -> Measure:
    """A measure with its options.

    Args:
        name: its name.
        options: as they stand in the file.
        where: begins every message.

    Raises:
        UnknownNameError: no measure has this name.
        StudyError: options at fault, one sentence each.
    """
    component = MEASURES.get(name)
    found = parse_options(where + ", measure", name, component.Options, options)
    if isinstance(found, NumberOptions) and not found.complete:
        raise StudyError(
            f"{where}, measure {name!r}: a published number and its tolerance (within or within_share) go together."
        )
    return component(found)

"""Rows of a file with one JSON object per line."""

from __future__ import annotations

import json
from collections.abc import Iterator

from engramscope.pairs.readers._base import Faults, Source, kind


def json_rows(source: Source, faults: Faults) -> Iterator[tuple[str, dict[str, object]]]:
    """Every object as ("line n", object); empty lines are skipped, every broken line is a fault."""
    # not splitlines(): a JSON text may hold U+2028 and its like, which are no line ends here
    for number, line in enumerate(source.text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            row = json.loads(line, object_pairs_hook=_no_repetition)
        except _Repeated as error:
            faults.add(where, f"the key {str(error)!r} is given twice")
        except json.JSONDecodeError as error:
            faults.add(where, f"not valid JSON ({error.msg}, column {error.colno})")
        except (RecursionError, ValueError):
            faults.add(where, "its JSON is nested too deeply, or holds a number that is too long")
        else:
            if isinstance(row, dict):
                yield where, row
            else:
                faults.add(where, f"expected an object, found {kind(row)}")


class _Repeated(ValueError):
    """A key that an object has twice."""


def _no_repetition(items: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in items:
        if key in found:
            raise _Repeated(key)
        found[key] = value
    return found

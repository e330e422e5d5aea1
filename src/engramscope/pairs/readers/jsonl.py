"""Our own format: one JSON object per line, with the keys of `Pair`.

Keys: `clean` and `correct` are needed; `id corrupted incorrect group spans corrupted_spans labels` are not.
`correct` and `incorrect` are lists of texts (one text stands for a list of one); spans are `{"name": [start, end]}`
in characters. Empty lines are skipped; a byte order mark and Windows line ends do no harm.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from engramscope.pairs.pair import Pair
from engramscope.pairs.readers._base import Faults, Reader, Source, kind
from engramscope.pairs.readers._rows import Row, pairs_of


class JsonLines(Reader):
    """Reads `pairs.jsonl`."""

    @classmethod
    def recognises(cls, source: Source) -> int:
        """By the extension .jsonl or .ndjson, or by a first line that is an object with `clean` and `correct`."""
        first = source.head.split("\n", 1)[0]
        if first.startswith("{") and '"clean"' in first and '"correct"' in first:
            return 2
        return int(source.suffix in (".jsonl", ".ndjson"))

    def read(self, source: Source) -> list[Pair]:
        """The pairs; every broken line is named."""
        faults = Faults(source.name)
        return pairs_of(_rows(source, faults), faults)


def _rows(source: Source, faults: Faults) -> Iterator[tuple[str, Row]]:
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


COMPONENT = JsonLines

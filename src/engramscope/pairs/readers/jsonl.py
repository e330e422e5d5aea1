"""Our own format: one JSON object per line, with the keys of `Pair`.

Keys: `clean` and `correct` are needed; `id corrupted incorrect group spans corrupted_spans labels` are not.
`correct` and `incorrect` are lists of texts (one text stands for a list of one); spans are `{"name": [start, end]}`
in characters. Empty lines are skipped; a byte order mark and Windows line ends do no harm.
"""

from __future__ import annotations

from engramscope.pairs.pair import Pair
from engramscope.pairs.readers._base import Faults, Reader, Source
from engramscope.pairs.readers._lines import json_rows
from engramscope.pairs.readers._rows import pairs_of


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
        return pairs_of(json_rows(source, faults), faults)


COMPONENT = JsonLines

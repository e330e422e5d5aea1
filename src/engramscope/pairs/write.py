"""Writing pairs in our own format."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from engramscope.pairs.pair import Pair


def write_jsonl(pairs: Iterable[Pair], path: str | Path) -> None:
    """Write pairs as `pairs.jsonl`, in whole or not at all; `read_pairs` gives them back unchanged.

    Args:
        pairs: the pairs.
        path: the file; an existing one is replaced only once the new one is complete.

    Raises:
        OSError: the file cannot be written; the old one, if any, is as it was.
    """
    target = Path(path)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    partial = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as out:
            for pair in pairs:
                out.write(json.dumps(as_row(pair), ensure_ascii=False) + "\n")
            out.flush()
            os.fsync(out.fileno())
        partial.chmod(0o666 & ~_umask())
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def as_row(pair: Pair) -> dict[str, object]:
    """The pair as the object of one line; keys that hold nothing are left out."""
    row: dict[str, object] = {"id": pair.id, "clean": pair.clean}
    if pair.corrupted is not None:
        row["corrupted"] = pair.corrupted
    row["correct"] = list(pair.correct)
    rest = {
        "incorrect": list(pair.incorrect), "group": pair.group,
        "spans": {name: list(span) for name, span in pair.spans.items()},
        "corrupted_spans": {name: list(span) for name, span in pair.corrupted_spans.items()},
        "labels": dict(pair.labels),
    }  # fmt: skip
    return row | {key: value for key, value in rest.items() if value}


def _umask() -> int:
    # the mask can only be read by setting it
    mask = os.umask(0o022)
    os.umask(mask)
    return mask

"""Proposed questions on disk: the pairs, and beside them what a person reads who edits them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pandas as pd

from engramscope.errors import InputError
from engramscope.pairs.write import as_row
from engramscope.questions.proposal import Proposal
from engramscope.results.atomic import write_text

#: cells that begin with one of these are formulas to a spreadsheet
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def review_path(path: Path) -> Path:
    """Where the review table of a pair file goes: `questions.review.csv` beside `questions.jsonl`."""
    return path.with_suffix(".review.csv")


def refuse_unfit(path: Path, *, force: bool = False) -> None:
    """Refuse a file name that no proposal can be written to, before anything is computed.

    Args:
        path: the pair file.
        force: whether files that are there may be overwritten.

    Raises:
        InputError: another ending than .jsonl, no such folder, or one of the two files is there.
    """
    if path.suffix != ".jsonl":
        raise InputError(f"{path} does not end in .jsonl; questions are written as JSON lines.")
    if not path.parent.is_dir():
        raise InputError(f"The folder {path.parent} is missing; make it, or give another --out.")
    there = [str(one) for one in (path, review_path(path)) if one.exists()]
    if there and not force:
        raise InputError(f"{' and '.join(there)} exist{'s' if len(there) == 1 else ''} already, perhaps with edits of "
                         "yours; --force overwrites.")  # fmt: skip


def write(proposal: Proposal, path: Path, *, force: bool = False) -> Path:
    """Write a proposal: the pairs as JSON lines, and its evidence as a table beside them.

    Args:
        proposal: the proposal.
        path: the pair file, ending in .jsonl.
        force: overwrite files that are there.

    Returns:
        The review table.

    Raises:
        InputError: see `refuse_unfit`.
        ResultsError: the operating system refuses.
    """
    refuse_unfit(path, force=force)
    review = review_path(path)
    write_text(review, _csv(proposal.evidence))
    write_text(path, "".join(json.dumps(as_row(pair), ensure_ascii=False) + "\n" for pair in proposal.pairs))
    return review


def _csv(table: pd.DataFrame) -> str:
    """The table as CSV; text that a spreadsheet would run as a formula has an apostrophe before it."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.columns)
    for row in table.itertuples(index=False):
        writer.writerow([_cell(value) for value in row])
    return out.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, str):
        return f"'{value}" if value.lstrip(" ").startswith(_FORMULA) else value
    if value is None or (isinstance(value, float) and value != value):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value

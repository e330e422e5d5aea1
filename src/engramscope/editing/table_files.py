"""A table of editors on disk: findings, tables for other programs, and the page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from engramscope.editing.outcome import Outcome
from engramscope.editing.table_page import write_table_page
from engramscope.evaluate.case import tidy
from engramscope.results.atomic import write_json, write_table, write_text

FINDINGS, EVALUATION = "table4.json", "evaluation.json"


def write_table_files(
    folder: Path, findings: Mapping[str, Any], outcomes: Mapping[str, Sequence[Outcome]], *, name: str = FINDINGS
) -> None:
    """Write the findings, `table.csv`, `differences.csv`, `values.parquet` and `report.html`, each in full.

    `values.parquet` has a row for each editor, record, measure and prompt, not scaled.

    Args:
        folder: where.
        findings: what the table says.
        outcomes: label -> outcomes.
        name: of the file with the findings.

    Raises:
        ResultsError: the disk refuses.
    """
    rows = [
        row
        for label, found in outcomes.items()
        for row in tidy([one.case for one in found if one.case is not None], editor=label)
    ]
    write_table(folder / "values.parquet", pa.Table.from_pandas(pd.DataFrame(rows), preserve_index=False))
    write_text(folder / "table.csv", _csv(findings["estimates"]))
    write_text(folder / "differences.csv", _csv(findings["differences"]))
    write_table_page(folder, findings)
    write_json(folder / name, findings)


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    pd.DataFrame(list(rows)).to_csv(text, index=False, lineterminator="\n")
    return text.getvalue()

"""How checks name things: a few of them, and a count of the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from engramscope.locate.cells import Cell
from engramscope.results import numbers

LIMIT = 5
#: longer texts are shortened in the middle
WIDTH = 160


def listed(items: Iterable[str], limit: int = LIMIT) -> tuple[str, ...]:
    """The first `limit` items, and how many more there are."""
    every = list(items)
    rest = len(every) - limit
    return (*every[:limit], f"and {numbers.whole(rest)} more") if rest > 0 else tuple(every)


def named(items: Iterable[str], limit: int = LIMIT) -> str:
    """The same in one line."""
    return ", ".join(listed(items, limit))


def count(number: int, one: str, many: str | None = None) -> str:
    """ "1 pair", "3 pairs"."""
    return numbers.counted(number, one, many)


def quoted(text: str) -> str:
    """A prompt or an answer in quotation marks, white space visible, shortened in the middle."""
    shown = repr(text)[1:-1]
    if len(shown) > WIDTH:
        shown = f"{shown[: WIDTH // 2]} … {shown[-WIDTH // 2 :]}"
    return f"“{shown}”"


def tokens(texts: Sequence[str]) -> str:
    """Tokens with bars between them, so that it is seen where each begins: `|The| Eiff|el|`; line breaks as `\\n`."""
    return "|" + "|".join(repr(text)[1:-1] for text in texts) + "|"


def cell_name(cell: Cell) -> str:
    """A short name: "z L3H5", "resid_post L2 at last"."""
    return _name(cell.site, cell.layer, cell.head, cell.position, cell.position_role, cell.window)


def row_name(row: Any) -> str:
    """The same for a row of the summary."""
    parts = (row[name] for name in ("layer", "head", "position", "position_role", "window"))
    layer, head, position, role, window = (None if pd.isna(part) else part for part in parts)
    return _name(str(row["site"]), layer, head, position, role, int(window or 1))


def number(value: float) -> str:
    """Three significant digits; very small and large ones as elsewhere in a report."""
    text = f"{value:.3g}"
    return numbers.number(value) if "e" in text else text.replace("-", numbers.MINUS)


def percent(share: float) -> str:
    """A share in whole per cent, but never 0 % or 100 % for something that is not exactly that."""
    if 0 < share < 0.01:
        return "under 1 %"
    if 0.99 < share < 1:
        return "over 99 %"
    return f"{100 * share:.0f} %"


def _name(site: str, layer: int | None, head: int | None, position: int | None, role: str | None, window: int) -> str:
    part = "" if layer is None else f" L{int(layer)}"
    part += "" if head is None else f"H{int(head)}"
    if position is not None:
        part += f" at position {int(position)}"
    elif role not in (None, "all"):
        part += f" at {role}"
    return f"{site}{part}" + (f" (window {window})" if window > 1 else "")

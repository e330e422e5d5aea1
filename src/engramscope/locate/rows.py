"""From outcomes to rows of the effects table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engramscope.locate.cells import Cell
from engramscope.locate.prepare import Prepared
from engramscope.locate.sweep import Baseline, Outcome

#: (pair, cell, metric) -> whether the cell is a cut in that pair
IsCut = Callable[[Prepared, Cell, str], bool]


def rows_of(
    outcomes: Sequence[Outcome],
    pairs: Mapping[int, Prepared],
    base: Mapping[int, Baseline],
    metrics: Sequence[str],
    is_cut: IsCut,
    *,
    study: str,
    corruption: str,
) -> dict[str, list[Any]]:
    """One row per outcome and metric, as columns of the effects table.

    `effect = patched - base run` where the base run is the corrupted one for `denoise` and the clean one for `noise`;
    `recovery = (patched - corrupted) / (clean - corrupted)`, null where there is no corrupted run or no gap.
    """
    rows = [
        _row(outcome, pairs[outcome.pair], base[outcome.pair], metric, is_cut, study, corruption)
        for outcome in outcomes
        for metric in metrics
    ]
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


def recovery_of(patched: float, clean: float, corrupted: float) -> float | None:
    """(patched - corrupted) / (clean - corrupted); None where the gap is zero or a value is not finite."""
    gap = clean - corrupted
    value = (patched - corrupted) / gap + 0.0 if gap != 0 else math.nan  # no -0.0
    return value if math.isfinite(value) else None


def _row(
    outcome: Outcome,
    pair: Prepared,
    base: Baseline,
    metric: str,
    is_cut: IsCut,
    study: str,
    corruption: str,
) -> dict[str, Any]:
    cell = outcome.cell
    clean = base.clean[metric]
    corrupted = base.corrupted[outcome.seed][metric] if base.corrupted else None
    ok = outcome.status == "ok"
    patched = outcome.scores[metric] if ok else None
    baseline = corrupted if cell.direction == "denoise" else clean
    return {
        "study": study,
        "pair": pair.id,
        "group": pair.tokens.pair.group,
        "corruption": corruption,
        "seed": outcome.seed,
        "direction": cell.direction,
        "site": cell.site,
        "layer": cell.layer,
        "head": cell.head,
        "position": cell.position,
        "position_role": _role(cell, pair),
        "window": cell.window,
        "metric": metric,
        "clean": clean,
        "corrupted": corrupted,
        "patched": patched,
        "effect": None if patched is None or baseline is None else patched - baseline,
        "recovery": None if patched is None or corrupted is None else recovery_of(patched, clean, corrupted),
        "status": outcome.status,
        "sweep": cell.sweep,
        "cut": is_cut(pair, cell, metric),
    }


def _role(cell: Cell, pair: Prepared) -> str | None:
    if cell.position is None:
        return cell.position_role
    roles = pair.tokens.clean.roles
    return roles[cell.position] if cell.position < len(roles) else None

"""A cell that cuts every path from what was changed to the read-out restores everything by construction."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, ClassVar

import numpy as np

from engramscope.audit._base import AuditContext, Check, Finding, Needs
from engramscope.audit._facts import cut_shares, is_ablation, without_cuts
from engramscope.audit._show import cell_name, count, listed, named, percent, row_name
from engramscope.locate.cells import Cell

#: a patched value this near to the source run's, as a share of the gap, counts as equal to it
EXACT = 1e-5
#: where the paths that a cut severs begin, and what follows from it
_SWAPPED = "what was changed", "restores 100 %"
_ABLATED = "the prompt", "makes what is read independent of the prompt"
CELL = ["sweep", "direction", "site", "layer", "head", "position", "position_role", "window"]


class CutSites(Check):
    """Names the cells whose 100 % is no finding."""

    needs: ClassVar[Needs] = "model"
    title: ClassVar[str] = "100 % by construction"

    def run(self, context: AuditContext) -> list[Finding]:
        """A note that names cut cells; a warning for sweeps that have no other."""
        severed, follows = _ABLATED if is_ablation(context.study) else _SWAPPED
        cells, shares = context.cells or [], cut_shares(context)
        always = [cell for cell, share in shares.items() if share >= 1.0]
        partly = [(cell, share) for cell, share in shares.items() if 0.0 < share < 1.0]
        findings: list[Finding] = self._empty_sweeps(cells, set(always), follows)
        if always:
            findings.append(
                self.finding(
                    "note",
                    f"{len(always)} of {count(len(cells), 'cell')} cut every path from {severed} to the read-out. This "
                    f"{follows} in any model, also in one that knows nothing, so it is no finding. They are marked, "
                    "and kept out of rankings, peaks and tests.",
                    listed(dict.fromkeys(cell_name(cell) for cell in always)),
                )
            )
        if partly:
            findings.append(
                self.finding(
                    "note",
                    f"{len(partly)} of {count(len(cells), 'cell')} cut every path in a part of the pairs. These pairs "
                    "are left out of such a cell.",
                    listed(f"{cell_name(cell)}: in {percent(share)} of the pairs" for cell, share in partly),
                )
            )
        if context.effects is not None:
            findings += self._suspected(context, context.effects)
        return findings or self.ok(f"None of {len(cells)} cells cuts every path from {severed} to the read-out.")

    def _suspected(self, context: AuditContext, effects: Any) -> list[Finding]:
        rows = without_cuts(effects[effects["status"] == "ok"]).dropna(subset=["patched", "clean", "corrupted"])
        clean, corrupted, patched = (rows[name].astype(float) for name in ("clean", "corrupted", "patched"))
        source = clean.where(rows["direction"].eq("denoise"), corrupted)
        floor = rows["metric"].map({name: value or 0.0 for name, value in context.noise_floor.items()}).fillna(0.0)
        allowed = np.maximum(floor.astype(float), EXACT * (clean - corrupted).abs())
        # a saturated probability is equal to the last digit without any cut, so all metrics have to be
        exact = rows.assign(exact=((patched - source).abs() <= allowed) & (clean != corrupted))
        cells = exact.groupby(CELL, dropna=False, sort=False)["exact"].all().reset_index()
        # a part of the heads leaves the others open
        found = cells[cells["exact"] & cells["head"].isna()]
        if found.empty:
            return []
        names = dict.fromkeys(row_name(row) for _, row in found.iterrows())
        return [
            self.finding(
                "warning",
                f"No rule knows {count(len(names), 'cell')} as a cut, but everything is restored to the last digit in "
                "every pair. This is either a true bottleneck or a module that holds all of the residual stream, and "
                "then no finding.",
                listed(names),
            )
        ]

    def _empty_sweeps(self, cells: list[Cell], always: set[Cell], follows: str) -> list[Finding]:
        sweeps: dict[str, list[bool]] = defaultdict(list)
        for cell in cells:
            sweeps[cell.sweep].append(cell in always)
        empty = [name for name, flags in sweeps.items() if all(flags)]
        if not empty:
            return []
        return [
            self.finding(
                "warning",
                f"Every cell of {count(len(empty), 'sweep')} ({named(empty)}) {follows} by construction, so nothing "
                "can be learned there; patch single positions or heads, or earlier layers.",
            )
        ]


COMPONENT = CutSites

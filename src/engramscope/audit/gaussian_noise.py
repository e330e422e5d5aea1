"""Gaussian noise drives a model off its distribution, and one draw of it is one accident."""

from __future__ import annotations

from typing import Any, ClassVar

from engramscope.audit._base import AuditContext, Check, Finding, Needs
from engramscope.audit._facts import corruption_options, noised_spans, without_cuts
from engramscope.audit._show import number, row_name

FEW_DRAWS = 5
CELL = ["sweep", "direction", "site", "layer", "head", "position", "position_role", "window", "metric"]


class GaussianNoise(Check):
    """Says how strong the noise is, how many draws there are, and how much they disagree."""

    needs: ClassVar[Needs] = "pairs"
    title: ClassVar[str] = "Noise as corruption"

    def run(self, context: AuditContext) -> list[Finding]:
        """A warning under Gaussian noise: σ, number of draws; with results also the spread between draws."""
        method = context.study.corruption.method
        if method != "gaussian":
            return self.ok(f"The corruption is {method!r}, not Gaussian noise.")
        options = corruption_options(context.study)
        draws, spans = int(options.get("draws", 1)), noised_spans(context.study)
        where = f"span {' and '.join(map(repr, spans))}" if spans else "key"
        findings = [
            self.finding(
                "warning",
                f"The corrupted run is made by Gaussian noise of {options.get('sigma')} standard deviations of the "
                f"embeddings of the {where} tokens ({draws} draws). Such embeddings "
                "belong to no text, so what is found may be how the model copes with noise; compare with method "
                '= "str".',
            )
        ]
        if draws < FEW_DRAWS:
            findings.append(
                self.finding(
                    "warning",
                    f"{draws} noise draw{'s' if draws != 1 else ''} per pair cannot show how much the result hangs on "
                    f"the draw; ask for at least {FEW_DRAWS} (10 are usual).",
                )
            )
        if context.effects is not None and draws > 1:
            findings += self._spread(context.effects)
        return findings

    def _spread(self, effects: Any) -> list[Finding]:
        rows = without_cuts(effects[effects["status"] == "ok"])
        by_draw = rows.groupby([*CELL, "seed"], dropna=False)["effect"].mean().reset_index()
        cells = by_draw.groupby(CELL, dropna=False)["effect"].agg(["mean", "std", "min", "max"]).reset_index()
        found: list[Finding] = []
        for metric, part in cells.dropna(subset=["std"]).groupby("metric", sort=False):
            widest = part.loc[part["std"].idxmax()]
            strongest = part.loc[part["mean"].abs().idxmax()]
            found.append(
                self.finding(
                    "note",
                    f"Between draws the mean effect on {metric} has a standard deviation of {number(widest['std'])} "
                    f"at most ({row_name(widest)}: from {number(widest['min'])} to {number(widest['max'])}); in the "
                    f"strongest cell ({row_name(strongest)}) it is {number(strongest['mean'])} ± "
                    f"{number(strongest['std'])}.",
                )
            )
        return found


COMPONENT = GaussianNoise

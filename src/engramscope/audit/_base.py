"""What a check is: one look at a study's design, or at its results, that ends in plain findings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pandas as pd

from engramscope.locate.cells import Cell
from engramscope.locate.trained import Changed
from engramscope.models.anatomy import Anatomy
from engramscope.pairs.pair import PairSet
from engramscope.pairs.tokenized import TokenizedPair
from engramscope.study_file import StudyFile, SweepSection

Severity = Literal["ok", "note", "warning", "error"]
Needs = Literal["pairs", "tokens", "model", "results"]

#: from the gravest to the mildest: the order in which findings are shown
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note", "ok")
#: what a check can need, in the order in which a study comes to have it
NEEDS: tuple[Needs, ...] = ("pairs", "tokens", "model", "results")


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has to say.

    Attributes:
        check: name of the check (its file).
        severity: "error" (the study must not run like this: `check` exits with 2 and `run` refuses), "warning" (a
            conclusion may be wrong), "note" (a limit of what may be said), "ok" (looked at, nothing found).
        message: one or two sentences.
        items: what it is about, at most five, and a count of the rest.
    """

    check: str
    severity: Severity
    message: str
    items: tuple[str, ...] = ()


@dataclass(frozen=True)
class AuditContext:
    """Everything that checks look at; what does not exist yet is None.

    Attributes:
        study: the study file.
        pairs: the pairs as they were read, before the corruption changes their texts.
        tokenized: the pairs in tokens, after that.
        tokenizer: a transformers tokenizer.
        anatomy: the model's parts.
        cells: every cell of every sweep.
        cut: share of pairs (in [0, 1]) in which a cell is a cut; where it is None the checks find it themselves.
        effects: the effects table (`results.schema.EFFECTS`).
        summary: the summary (`results.schema.SUMMARY_COLUMNS`).
        baselines: the unpatched runs: pair, seed, metric, clean, corrupted (null for ablations).
        excluded: (pair id, reason) of pairs that do not enter recovery.
        unknown: the same of pairs that enter nothing, because the model does not know their answer.
        noise_floor: metric -> largest effect of patching a run with its own values; None where it was not measured.
        sweeps: the sweeps that are run: those of the study and the single layers that are added beside windows; where
            it is None, those of the study.
        changed: where the model and the one before training differ; None where there is one model only, or none yet.
        other_base: what the model was trained from, where that is known not to be the base model of the study.
    """

    study: StudyFile
    pairs: PairSet
    tokenized: list[TokenizedPair] | None = None
    tokenizer: Any | None = None
    anatomy: Anatomy | None = None
    cells: list[Cell] | None = None
    cut: Mapping[Cell, float] | None = None
    effects: pd.DataFrame | None = None
    summary: pd.DataFrame | None = None
    baselines: pd.DataFrame | None = None
    excluded: list[tuple[str, str]] = field(default_factory=list)
    unknown: list[tuple[str, str]] = field(default_factory=list)
    noise_floor: Mapping[str, float | None] = field(default_factory=dict)
    sweeps: Sequence[SweepSection] | None = None
    changed: Changed | None = None
    other_base: str = ""

    def has(self, needs: Needs) -> bool:
        """Whether the study has come as far as a check with these needs asks."""
        there = {
            "pairs": (),
            "tokens": (self.tokenized,),
            "model": (self.anatomy, self.cells),
            "results": (self.effects, self.summary, self.baselines),
        }
        return all(part is not None for part in there[needs])


class Check(ABC):
    """One look at a study.

    Class attributes:
        needs: what must be there for the check to run: "pairs" (nothing but the study file and the pairs), "tokens",
            "model" (its anatomy and the cells of the sweeps, no weights) or "results". A check may look at more where
            that is there.
        title: a few words, for a panel's heading.
    """

    needs: ClassVar[Needs]
    title: ClassVar[str]

    @abstractmethod
    def run(self, context: AuditContext) -> list[Finding]:
        """Look at the study.

        Returns:
            At least one finding: "ok" says what was looked at.
        """

    def finding(self, severity: Severity, message: str, items: tuple[str, ...] = ()) -> Finding:
        """A finding of this check, under the name of its file."""
        return Finding(type(self).__module__.rsplit(".", 1)[-1], severity, message, items)

    def ok(self, message: str) -> list[Finding]:
        """The single finding that there is nothing to report."""
        return [self.finding("ok", message)]

"""Training and validation side of the documents: at random, the same share of every stratum, no text on both sides."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pandas as pd

from engramscope.errors import InputError
from engramscope.finetune.documents import Documents

TRAIN, VALIDATION = "train", "validation"
#: name of the stratum that strata of too few documents are put into
SMALL = "(small strata)"


@dataclass(frozen=True)
class Split:
    """A split of documents.

    Attributes:
        held_out: for each document whether it is held out for validation.
        strata: for each document the name of its stratum.
    """

    held_out: np.ndarray
    strata: tuple[str, ...]

    def table(self, documents: Documents) -> pd.DataFrame:
        """One row per document: its row of the corpus from 0, PMID, side, stratum."""
        sides = np.where(self.held_out, VALIDATION, TRAIN)
        return pd.DataFrame({"row": documents.rows, "PMID": documents.ids, "side": sides, "stratum": self.strata})


def split_documents(documents: Documents, terms: tuple[str, ...], share: float, seed: int) -> Split:
    """Hold out a share of the documents, stratified by which terms each mentions.

    Documents with the same text form one unit, so that none lies on both sides. Strata with fewer than 1 / share units
    could not give their share and are put together. Of every stratum its share of units is drawn; the total is the
    share of all, rounded, with the rest of the division given to the strata with the largest remainders.

    Deviation: scikit-learn's `train_test_split(stratify=…)`, which CLAP may have used, refuses strata of one document
    and draws other documents from the same seed.

    Args:
        documents: what is split.
        terms: names of the columns of `documents.mentions`.
        share: of the units that is held out, between 0 and 1.
        seed: of the draw.

    Raises:
        InputError: one of the sides would be empty.
    """
    first = np.unique(documents.groups, return_index=True)[1]
    names = merge_small([_stratum(documents.mentions[row], terms) for row in first], share)
    chosen = draw_stratified(names, share, np.random.default_rng(seed))
    held_out = chosen[documents.groups]
    if held_out.all() or not held_out.any():
        side = "training" if held_out.all() else "validation"
        raise InputError(
            f"The corpus has {len(first)} different texts, and a validation share of {share:g} of them leaves the "
            f"{side} side empty; give more abstracts or another --set validation=…"
        )
    return Split(held_out, tuple(names[group] for group in documents.groups))


def merge_small(names: list[str], share: float) -> list[str]:
    """Put strata with fewer than 1 / share members (and 1 / (1 - share)) into one."""
    fewest = int(np.ceil(1 / min(share, 1 - share) - 1e-9))
    counts = Counter(names)
    return [name if counts[name] >= fewest else SMALL for name in names]


def draw_stratified(names: list[str], share: float, random: np.random.Generator) -> np.ndarray:
    """Which members are drawn: round(share × all), from each stratum its share rounded down or up."""
    strata = sorted(set(names))
    members = {name: np.flatnonzero(np.array(names) == name) for name in strata}
    wanted = np.array([share * len(members[name]) for name in strata])
    counts = np.floor(wanted + 1e-9).astype(int)
    remainders = wanted - counts
    rest = round(share * len(names)) - int(counts.sum())
    counts[np.argsort(-remainders, kind="stable")[: max(rest, 0)]] += 1
    drawn = np.zeros(len(names), dtype=bool)
    for name, count in zip(strata, counts, strict=True):
        drawn[random.permutation(members[name])[:count]] = True
    return drawn


def _stratum(mentions: np.ndarray, terms: tuple[str, ...]) -> str:
    return " + ".join(term for term, there in zip(terms, mentions, strict=True) if there) or "(none)"

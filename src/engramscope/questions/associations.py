"""How often every two terms of a corpus stand together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array, triu

from engramscope.questions.terms import Mentions


@dataclass(frozen=True)
class Counts:
    """Units (sentences, or documents) that mention a term, and two terms.

    Attributes:
        total: all units.
        alone: units with each term [n_terms].
        together: units with two terms, by their numbers, the smaller first; couples that never meet are not in it.
    """

    total: int
    alone: np.ndarray
    together: Mapping[tuple[int, int], int]

    def both(self, one: int, other: int) -> int:
        """Units that mention both terms."""
        return self.together.get((min(one, other), max(one, other)), 0)

    def expected(self, one: int, other: int) -> float:
        """Units that would mention both if the terms were independent."""
        return int(self.alone[one]) * int(self.alone[other]) / self.total

    def above_chance(self, one: int, other: int) -> bool:
        """Whether two terms stand together more often than if they were independent; in whole numbers, unrounded."""
        return self.both(one, other) * self.total > int(self.alone[one]) * int(self.alone[other])


class Associations:
    """Counts of every two terms over sentences and over documents.

    Args:
        mentions: who mentions what.

    Attributes:
        mentions: as given.
        sentences, documents: the counts.
    """

    def __init__(self, mentions: Mentions) -> None:
        self.mentions = mentions
        columns = mentions.sentences.tocsc()
        self._rows = [columns.indices[columns.indptr[t] : columns.indptr[t + 1]] for t in range(len(mentions.terms))]
        self.sentences = _count(mentions.sentences, len(mentions.document))
        self.documents = _count(_by_document(mentions), mentions.documents)

    def rows(self, one: int, other: int) -> np.ndarray:
        """Numbers of the sentences that mention both terms, ascending."""
        return np.intersect1d(self._rows[one], self._rows[other])

    def sharing(self, one: int, other: int) -> int:
        """Documents of which some sentence mentions both terms."""
        return len(set(self.mentions.document[self.rows(one, other)].tolist()))

    def apart(self, one: int, other: int, least: int) -> bool:
        """Whether two terms are not associated.

        They are not if they stand together no more often than by chance, in sentences and in documents, and share a
        sentence in fewer than `least` documents: common terms stand with everything often enough for a reader.
        """
        above = self.sentences.above_chance(one, other) or self.documents.above_chance(one, other)
        return not above and self.sharing(one, other) < least


def _count(table: csr_array, total: int) -> Counts:
    products = triu(table.T @ table).tocoo()
    cells = zip(products.row.tolist(), products.col.tolist(), products.data.tolist(), strict=True)
    together = {(row, column): int(times) for row, column, times in cells if row != column}
    return Counts(total, np.asarray(table.sum(axis=0)).ravel(), together)


def _by_document(mentions: Mentions) -> csr_array:
    n = len(mentions.document)
    lift = csr_array((np.ones(n, dtype=np.int64), (mentions.document, np.arange(n))), shape=(mentions.documents, n))
    return csr_array((lift @ mentions.sentences > 0).astype(np.int64))

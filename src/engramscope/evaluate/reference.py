"""Consistency: TF-IDF similarity of generated texts to reference texts about the new answer (RS)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt

import numpy as np
from numpy.typing import NDArray

#: SHA-256 of the reference texts of the publication (attribute_snippets.json, 926,285,719 bytes)
PUBLISHED_SHA256 = "10b5c1cd105e54d5983c72de1b45bfc88bc7af786f7b99def2557886ff23385b"

_WORD = re.compile(r"\b\w\w+\b")


def terms(text: str) -> list[str]:
    """Lower-cased words of at least two characters, as scikit-learn's `TfidfVectorizer` finds them by default."""
    return _WORD.findall(text.lower())


class DocumentCounts:
    """In how many documents each word stands; documents are counted one at a time and not kept."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._documents = 0

    def add(self, text: str) -> None:
        """Count one document."""
        self._counts.update(set(terms(text)))
        self._documents += 1

    def fitted(self) -> TfIdf:
        """The vectors' vocabulary and weights, over the documents so far: idf = ln((1 + n) / (1 + df)) + 1."""
        counts = np.fromiter(self._counts.values(), dtype=np.float64, count=len(self._counts))
        idf = np.log((1.0 + self._documents) / (1.0 + counts)) + 1.0
        return TfIdf({word: index for index, word in enumerate(self._counts)}, idf)


@dataclass(frozen=True, eq=False)
class TfIdf:
    """TF-IDF vectors with the defaults of scikit-learn: raw counts, smooth idf.

    Attributes:
        vocabulary: word -> its place in `idf`.
        idf: inverse document frequencies [words], ≥ 1.
    """

    vocabulary: Mapping[str, int]
    idf: NDArray[np.float64]

    @classmethod
    def fit(cls, documents: Iterable[str]) -> TfIdf:
        """Vocabulary and weights of documents."""
        counts = DocumentCounts()
        for document in documents:
            counts.add(document)
        return counts.fitted()

    def weights(self, text: str) -> dict[int, float]:
        """Place -> count · idf of the text's words that are in the vocabulary; not scaled to length 1."""
        places = Counter(place for word in terms(text) if (place := self.vocabulary.get(word)) is not None)
        return {place: count * float(self.idf[place]) for place, count in places.items()}

    def cosine(self, text: str, other: str) -> float:
        """Cosine of two texts' vectors, in [0, 1]; 0 where one of them has no word of the vocabulary."""
        one, two = self.weights(text), self.weights(other)
        size = sqrt(sum(value**2 for value in one.values()) * sum(value**2 for value in two.values()))
        shared = sum(value * two[place] for place, value in one.items() if place in two)
        return shared / size if size else 0.0


@dataclass(frozen=True, eq=False)
class References:
    """Reference texts, and the weights of their words.

    Attributes:
        texts: `Record.reference` ("P103|Q150") -> the texts about subjects for which the new answer is true.
        tfidf: fitted on every text of the source, also on those that are not kept here.
        about: subject -> texts about it.
        source: where they came from.
        sha256: of the file they came from; None where there is none.
    """

    texts: Mapping[str, Sequence[str]]
    tfidf: TfIdf
    about: Mapping[str, Sequence[str]] = field(default_factory=dict)
    source: str = "memory"
    sha256: str | None = None

    @classmethod
    def from_texts(
        cls, texts: Mapping[str, Sequence[str]], about: Mapping[str, Sequence[str]] | None = None, *,
        source: str = "memory", sha256: str | None = None,
    ) -> References:  # fmt: skip
        """References from texts in memory; the weights are fitted on them, each text a document.

        Args:
            texts: `Record.reference` -> texts.
            about: subject -> texts about it.
            source: where they came from.
            sha256: of the file they came from.
        """
        fitted = TfIdf.fit(text for group in texts.values() for text in group)
        return cls(texts, fitted, about or {}, source, sha256)

    @property
    def comparable(self) -> bool:
        """Whether these are the reference texts of the publication, so that RS can be set beside its figures."""
        return self.sha256 == PUBLISHED_SHA256

    @property
    def note(self) -> str:
        """What is to be said of RS."""
        if self.comparable:
            return "RS is computed with the reference texts of Meng et al."
        known = f"SHA-256 {self.sha256[:8]}…" if self.sha256 else "no file"
        return (
            f"RS is not comparable with published figures: its reference texts ({self.source}, {known}) are not those "
            f"of Meng et al. (SHA-256 {PUBLISHED_SHA256[:8]}…), and a TF-IDF cosine depends on the texts."
        )

    def score(self, reference: str | None, generated: Sequence[str]) -> float | None:
        """RS: cosine of all generated texts in a row and all reference texts in a row; None without references."""
        given = self.texts.get(reference, ()) if reference else ()
        return self.tfidf.cosine(" ".join(generated), " ".join(given)) if given and generated else None

"""What of a corpus is learned: the text of every document, the terms it mentions, and which are the same text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from engramscope.corpus.keywords import term_pattern
from engramscope.corpus.text import plain_form
from engramscope.errors import InputError

Text = Literal["abstract", "title+abstract"]


@dataclass(frozen=True)
class Documents:
    """The documents of a corpus that have a text.

    Attributes:
        rows: row of the corpus table of each, from 0; PMIDs may be missing.
        ids: PMID of each.
        texts: what is learned of each.
        mentions: for each document and key term whether its text mentions it, `[documents, terms]`.
        groups: documents with the same text carry the same number.
        without_text: documents left out because they have none.
    """

    rows: tuple[int, ...]
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    mentions: np.ndarray
    groups: np.ndarray
    without_text: int


def read_documents(table: pd.DataFrame, text: Text, terms: Sequence[str], limit: int | None, seed: int) -> Documents:
    """The documents of a corpus table, in its order.

    Args:
        table: with the columns PMID, Title and Abstract.
        text: which columns are learned; a title stands on a line of its own before the abstract.
        terms: key terms.
        limit: a random sample of so many, None for all.
        seed: of the sample.

    Raises:
        InputError: no document has a text.
    """
    abstracts = table["Abstract"].fillna("").astype(str).str.strip()
    titles = table["Title"].fillna("").astype(str).str.strip()
    full = (abstracts != "").to_numpy()
    rows = np.flatnonzero(full)
    if not len(rows):
        raise InputError(
            f"The corpus has {len(table)} rows and no abstract in any of them; there is nothing to learn from."
        )
    if limit is not None and limit < len(rows):
        rows = np.sort(np.random.default_rng(seed).choice(rows, size=limit, replace=False))
    if text == "title+abstract":
        texts = tuple(f"{titles.iloc[row]}\n{abstracts.iloc[row]}".strip() for row in rows)
    else:
        texts = tuple(abstracts.iloc[rows])
    ids = tuple(table["PMID"].iloc[rows].astype(str))
    return Documents(tuple(rows.tolist()), ids, texts, mentions_of(texts, terms), same_text(texts), int((~full).sum()))


def mentions_of(texts: Sequence[str], terms: Sequence[str]) -> np.ndarray:
    """Whether each text mentions each term, `[texts, terms]`, whatever its case and also within a word, as the corpus
    counts it: "Seizures" mentions "seizure".
    """
    patterns = [term_pattern(term, whole=False) for term in terms]
    return np.array([[bool(one.search(text)) for one in patterns] for text in texts], dtype=bool).reshape(
        len(texts), len(patterns)
    )


def same_text(texts: Sequence[str]) -> np.ndarray:
    """A number per text, the same one for texts that differ in case, white space and punctuation only."""
    known: dict[bytes, int] = {}
    return np.array([known.setdefault(_normal(text), len(known)) for text in texts], dtype=np.int64)


def corpus_hash(documents: Documents) -> str:
    """SHA-256 over the PMIDs and texts that are learned from, in their order."""
    digest = hashlib.sha256()
    for identity, text in zip(documents.ids, documents.texts, strict=True):
        for part in (identity, text):
            data = part.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _normal(text: str) -> bytes:
    # a text of signs alone is compared as it stands
    return hashlib.sha256((plain_form(text) or text).encode("utf-8", "surrogatepass")).digest()

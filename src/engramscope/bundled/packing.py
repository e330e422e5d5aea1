"""Documents as rows of tokens: several documents share a row and do not see each other."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from engramscope.bundled.corpus import Document

if TYPE_CHECKING:
    import torch

Encode = Callable[[str], list[int]]
START_MARK_SHARE = 0.5
JOINED_ROW_SHARE = 0.25
OTHER_WEIGHT, ANSWER_WEIGHT = 0.1, 1.0
LARGEST_CACHE = 200_000
HIDDEN = -1e9


@dataclass(frozen=True)
class PackedRows:
    """The corpus, ready for training.

    Attributes:
        tokens: Token ids, `[rows, length]`.
        is_answer: Whether a token belongs to an answer, `[rows, length]`.
        document: Number of the document within its row, 0 for padding, `[rows, length]`.
    """

    tokens: npt.NDArray[np.uint16]
    is_answer: npt.NDArray[np.bool_]
    document: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Batch:
    """Tensors of one training step, each `[batch, length]` unless said otherwise.

    Attributes:
        input_ids: Token ids.
        position_ids: Positions that count from the start of each document.
        attention_mask: `[batch, 1, length, length]`, 0 where a token may look, else very negative.
        targets: The next token of the same document.
        weights: Weight of each target in the loss; 0 where there is none.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor


def pack(documents: Iterator[Document], encode: Encode, end: int, *, rows: int, length: int, seed: int) -> PackedRows:
    """Fill rows with documents, one after the other.

    Half of the documents start with the end-of-text token, all end with it. In a quarter of the
    rows the documents see those before them, so that later positions are trained as well.

    Args:
        documents: The stream of documents.
        encode: Text to token ids.
        end: Id of the end-of-text token.
        rows: Number of rows.
        length: Tokens in a row.
        seed: Seed of the two draws above.

    Returns:
        The filled rows.
    """
    draw = random.Random(seed)
    packed = PackedRows(
        tokens=np.full((rows, length), end, dtype=np.uint16),
        is_answer=np.zeros((rows, length), dtype=np.bool_),
        document=np.zeros((rows, length), dtype=np.uint8),
    )
    cached = _cached(encode)
    pending: list[tuple[int, bool]] = []
    for row in range(rows):
        joined = draw.random() < JOINED_ROW_SHARE
        used, number = 0, 0
        while True:
            pending = pending or _tokens(next(documents), cached, end, draw.random())
            if used + len(pending) > length:
                break
            number = 1 if joined else number + 1
            stretch = slice(used, used + len(pending))
            packed.tokens[row, stretch] = [token for token, _ in pending]
            packed.is_answer[row, stretch] = [answer for _, answer in pending]
            packed.document[row, stretch] = number
            used, pending = used + len(pending), []
    return packed


def joined(*parts: PackedRows) -> PackedRows:
    """Put rows one below the other."""
    return PackedRows(
        tokens=np.concatenate([part.tokens for part in parts]),
        is_answer=np.concatenate([part.is_answer for part in parts]),
        document=np.concatenate([part.document for part in parts]),
    )


def batch_of(packed: PackedRows, chosen: npt.NDArray[np.int64]) -> Batch:
    """Turn some rows into tensors.

    Args:
        packed: All rows.
        chosen: Row numbers.

    Returns:
        The batch.
    """
    import torch

    document = packed.document[chosen].astype(np.int64)
    same = document[:, :, None] == document[:, None, :]
    length = document.shape[1]
    causal = np.tril(np.ones((length, length), dtype=np.bool_))
    starts = np.where(np.diff(document, axis=1, prepend=-1) != 0, np.arange(length), 0)
    position = np.arange(length) - np.maximum.accumulate(starts, axis=1)
    tokens = packed.tokens[chosen].astype(np.int64)
    has_next = (document[:, 1:] == document[:, :-1]) & (document[:, 1:] > 0)
    weight = np.where(packed.is_answer[chosen][:, 1:], ANSWER_WEIGHT, OTHER_WEIGHT) * has_next
    return Batch(
        input_ids=torch.from_numpy(tokens),
        position_ids=torch.from_numpy(position),
        attention_mask=torch.from_numpy(_additive(same & causal))[:, None],
        targets=torch.from_numpy(np.pad(tokens[:, 1:], ((0, 0), (0, 1)))),
        weights=torch.from_numpy(np.pad(weight, ((0, 0), (0, 1))).astype(np.float32)),
    )


def _additive(may_look: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    return np.where(may_look, np.float32(0.0), np.float32(HIDDEN))


def _cached(encode: Encode) -> Encode:
    known: dict[str, list[int]] = {}

    def encode_once(text: str) -> list[int]:
        if text not in known:
            if len(known) >= LARGEST_CACHE:
                known.clear()
            known[text] = encode(text)
        return known[text]

    return encode_once


def _tokens(document: Document, encode: Encode, end: int, chance: float) -> list[tuple[int, bool]]:
    tokens = [(end, False)] if chance < START_MARK_SHARE else []
    for piece in document:
        tokens += [(token, piece.is_answer) for token in encode(piece.text)]
    tokens.append((end, False))
    return tokens

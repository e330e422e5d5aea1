"""What a model says comes next: after many texts, in few forwards."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engramscope.edit.tokens import Ask, batches
from engramscope.models.model import Model

#: token ids of everything that stands before a token, the special tokens in front included
Before = tuple[int, ...]

#: what `Readings.best` answers where the model has no most probable token
NO_TOKEN = -1

#: padded tokens of one forward, and logits that are held at once (512 MiB in float32)
TOKENS = 4096
_LOGITS = 2**27


class Readings:
    """Distributions of the next token of a model as it is now.

    What was read is kept, so that no text is run twice; of a distribution only what was asked for is kept. A text that
    is the beginning of another one is read from the other's row, because a causal model does not see what follows.
    Log-probabilities are taken in float32 whatever the model's dtype.

    Valid as long as the model stays as it is: make a new one after an edit.

    Args:
        model: the model.
        tokens: padded tokens of one forward.
    """

    def __init__(self, model: Model, tokens: int = TOKENS) -> None:
        self._model = model
        vocabulary = int(model.hf.config.get_text_config().vocab_size)
        self._tokens = max(1, min(tokens, _LOGITS // vocabulary))
        self._best: dict[Before, int] = {}
        self._log_probs: dict[Before, dict[int, float]] = {}
        self._whole: dict[Before, NDArray[np.float32]] = {}

    def read(self, wanted: Mapping[Before, Iterable[int]], whole: Iterable[Before] = ()) -> None:
        """Run the model on what has not been read yet.

        Args:
            wanted: text -> tokens whose log-probability after it is wanted; the most probable token always is.
            whole: texts of which the whole distribution is wanted.
        """
        kept = set(whole)
        left = {before: set(tokens) for before, tokens in wanted.items()}
        for before in kept:
            left.setdefault(before, set())
        left = {before: tokens for before, tokens in left.items() if self._lacks(before, tokens, before in kept)}
        rows = _rows(left)
        asks = [Ask(row, ()) for row in rows]
        for batch in batches(asks, self._tokens):
            self._read_batch({asks[index].prompt: rows[asks[index].prompt] for index in batch}, left, kept)

    def best(self, before: Before) -> int:
        """The most probable token; `NO_TOKEN` where the model's answer is not a number."""
        return self._best[before]

    def log_prob(self, before: Before, token: int) -> float:
        """Natural logarithm of a token's probability, ≤ 0; NaN where the model's answer is not a number."""
        return self._log_probs[before][token]

    def distribution(self, before: Before) -> NDArray[np.float32]:
        """Log-probabilities of all tokens [vocab]."""
        return self._whole[before]

    def _lacks(self, before: Before, tokens: set[int], whole: bool) -> bool:
        known = self._log_probs.get(before, {})
        return before not in self._best or not tokens <= known.keys() or (whole and before not in self._whole)

    @torch.no_grad()
    def _read_batch(
        self, rows: Mapping[Before, Sequence[Before]], left: Mapping[Before, set[int]], kept: set[Before]
    ) -> None:
        places = [(row, before) for row, texts in enumerate(rows.values()) for before in texts]
        positions = sorted({len(before) - 1 for _, before in places})
        column = {position: index for index, position in enumerate(positions)}
        logits = logits_at(self._model, list(rows), positions)
        index = torch.tensor([(row, column[len(before) - 1]) for row, before in places], device=logits.device)
        picked = logits[index[:, 0], index[:, 1]]
        del logits
        log_probs = torch.log_softmax(picked if picked.dtype == torch.float64 else picked.float(), dim=-1)
        best = torch.where(log_probs.isnan().any(-1), NO_TOKEN, log_probs.argmax(-1)).tolist()
        self._keep(log_probs, best, [before for _, before in places], left, kept)

    def _keep(
        self, log_probs: Tensor, best: list[int], texts: Sequence[Before], left: Mapping[Before, set[int]],
        kept: set[Before],
    ) -> None:  # fmt: skip
        flat = [(place, token) for place, before in enumerate(texts) for token in left[before]]
        index = torch.tensor(flat, dtype=torch.long, device=log_probs.device).reshape(-1, 2)
        values = log_probs[index[:, 0], index[:, 1]].tolist()
        for (place, token), value in zip(flat, values, strict=True):
            self._log_probs.setdefault(texts[place], {})[token] = value
        for place, (before, token) in enumerate(zip(texts, best, strict=True)):
            self._best[before] = token
            if before in kept:
                self._whole[before] = log_probs[place].float().cpu().numpy()


def logits_at(model: Model, rows: Sequence[Before], positions: Sequence[int]) -> Tensor:
    """Logits of token rows at some positions [rows, positions, vocab]; rows are padded on the right and masked.

    Where the model lets it be said, the output head computes those positions only.
    """
    length = max(len(row) for row in rows)
    ids = torch.zeros((len(rows), length), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = 1
    inputs = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device), "use_cache": False}
    only = torch.tensor(positions, device=model.device)
    if "logits_to_keep" in inspect.signature(model.hf.forward).parameters:
        return model.hf(**inputs, logits_to_keep=only).logits
    return model.hf(**inputs).logits[:, only]


def _rows(texts: Iterable[Before]) -> dict[Before, list[Before]]:
    """The texts that are the beginning of no other one, each with the texts that are read from its row."""
    found: dict[Before, list[Before]] = {}
    row: Before = ()
    # backwards in order, a text stands right after what continues it
    for text in sorted(texts, reverse=True):
        if row[: len(text)] != text:
            row = text
        found.setdefault(row, []).append(text)
    return found

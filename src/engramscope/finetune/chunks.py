"""Documents as chunks of tokens, and batches of chunks whose padding nobody learns from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from engramscope.errors import InputError

#: a label that the loss leaves out
IGNORED = -100
#: fewer documents than this per process are not worth a process
_PER_PROCESS = 250
_PARALLEL = "TOKENIZERS_PARALLELISM"


def tokenise(tokenizer: Any, texts: Sequence[str], *, end_of_text: bool, processes: int) -> list[list[int]]:
    """Token ids of every text, with the special tokens that the tokenizer adds by itself.

    Args:
        tokenizer: a fast tokenizer.
        texts: one per document.
        end_of_text: put the tokenizer's end-of-text token behind each text, unless it did so itself.
        processes: at most; fewer where the texts are few.

    Returns:
        A list of ids per text, in the order of the texts.
    """
    ending = tokenizer.eos_token_id if end_of_text else None
    count = max(1, min(processes, len(texts) // _PER_PROCESS))
    if count == 1:
        return _ids({"text": list(texts)}, tokenizer, ending)["ids"]
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        # in memory, so that nothing is left in anybody's cache; the fingerprint would only name such a file
        with _one_thread_each():
            made = datasets.Dataset.from_dict({"text": list(texts)}).map(
                _ids, batched=True, num_proc=count, keep_in_memory=True, remove_columns=["text"],
                fn_kwargs={"tokenizer": tokenizer, "ending": ending}, new_fingerprint="engramscope",
            )  # fmt: skip
        return made["ids"][:]
    finally:
        if shown:
            datasets.enable_progress_bars()


def _ids(batch: dict[str, list[str]], tokenizer: Any, ending: int | None) -> dict[str, list[list[int]]]:
    found: list[list[int]] = tokenizer(batch["text"], return_attention_mask=False, verbose=False)["input_ids"]
    if ending is not None:
        found = [ids if ids and ids[-1] == ending else [*ids, ending] for ids in found]
    return {"ids": found}


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """No threads inside the processes that tokenise; what stood in the environment is put back."""
    before = os.environ.get(_PARALLEL)
    os.environ[_PARALLEL] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PARALLEL]
        else:
            os.environ[_PARALLEL] = before


def cut(ids: Sequence[int], length: int) -> list[list[int]]:
    """Chunks of at most `length` tokens of one document.

    Neighbours share one token: the last of a chunk is the first of the next, where it is given and not predicted. So
    every token of the document but its first is predicted exactly once, however long the chunks are.

    Returns:
        The chunks in order; none where the document has fewer than two tokens, since nothing could be predicted.
    """
    if len(ids) < 2:
        return []
    return [list(ids[start : start + length]) for start in range(0, len(ids) - 1, length - 1)]


def ensure_in_vocabulary(documents: Sequence[Sequence[int]], vocab: int, model: str) -> None:
    """Refuse token ids that the model has no embedding for.

    Raises:
        InputError: names the largest id.
    """
    largest = max((max(ids) for ids in documents if ids), default=0)
    if largest >= vocab:
        raise InputError(
            f"The tokenizer of {model} makes token ids up to {largest}, but its model has only {vocab} embeddings (ids "
            f"0 to {vocab - 1}); model and tokenizer do not belong together."
        )


def pad_token(tokenizer: Any) -> tuple[int, str]:
    """The id that fills a batch up, and where it comes from: "pad", "end of text", or "id 0" where there is neither.

    Which one it is changes nothing that is learned: padding is masked by its place, not by its id.
    """
    if tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id), "pad"
    if tokenizer.eos_token_id is not None:
        return int(tokenizer.eos_token_id), "end of text"
    return 0, "id 0"


@dataclass(frozen=True)
class Padding:
    """Makes batches of chunks: filled up on the right, and masked by length.

    A chunk's own end-of-text token keeps its label, even where padding is done with the same id.

    Attributes:
        pad: id that fills up.
        chunk: tokens of a full chunk.
        to: pad to the longest chunk of the batch, or always to `chunk`.
    """

    pad: int
    chunk: int
    to: Literal["longest", "chunk"] = "longest"

    def __call__(self, chunks: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Returns `input_ids`, `attention_mask` (1 where a token stands) and `labels` (-100 where nothing is learned:
        on padding, and on each chunk's first token, which nothing predicts), each `[chunks, tokens]`.
        """
        width = self.chunk if self.to == "chunk" else max(len(chunk) for chunk in chunks)
        ids = torch.full((len(chunks), width), self.pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        labels = torch.full_like(ids, IGNORED)
        for row, chunk in enumerate(chunks):
            values = torch.as_tensor(np.asarray(chunk, dtype=np.int64))
            ids[row, : len(chunk)] = values
            mask[row, : len(chunk)] = 1
            labels[row, 1 : len(chunk)] = values[1:]
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

"""Ordinary text for the bundled models: for perplexity before and after an edit, and to train editors on."""

from __future__ import annotations

import re
from collections.abc import Collection

from engramscope.bundled.corpus import documents, load_sources, text_of
from engramscope.bundled.sentences import is_held_out
from engramscope.records.bundled import people_of

_HELD_OUT_EVERY = 4
#: keeps every seed given here away from those of the training corpora (0 and 1)
_FIRST_SEED = 1_000_003


def held_out_texts(n: int, seed: int = 0) -> list[str]:
    """Texts for perplexity: documents of the corpus that `training_texts` never gives out.

    They are held out from editors, not from the models, which were trained on an endless stream of such documents.

    Args:
        n: how many; all are different.
        seed: the same seed gives the same texts.
    """
    return _texts(n, seed, held_out=True, unnamed=())


def training_texts(n: int, seed: int = 0) -> list[str]:
    """Texts to train an editor on: documents of the corpus in which nobody of the test split is named.

    None of them is among the `held_out_texts` of any seed.

    Args:
        n: how many; all are different.
        seed: the same seed gives the same texts.
    """
    return _texts(n, seed, held_out=False, unnamed=people_of("test"))


def _texts(n: int, seed: int, *, held_out: bool, unnamed: Collection[str]) -> list[str]:
    # the empty alternative of no names would match everywhere
    named = re.compile("|".join(map(re.escape, sorted(unnamed))) or r"(?!)")
    # a dict keeps the order of drawing
    found: dict[str, None] = {}
    stream = documents(load_sources(), _FIRST_SEED + seed)
    while len(found) < n:
        text = text_of(next(stream))
        if is_held_out("text", text, every=_HELD_OUT_EVERY) == held_out and not named.search(text):
            found[text] = None
    return list(found)

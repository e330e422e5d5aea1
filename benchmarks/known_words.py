"""What a fine-tuned model has learned beyond how often words occur.

    python -m benchmarks.known_words corpus/ tuned/

Of the held-out abstracts of a finished fine-tuning: the loss (nats per token) of the model before and after training,
as its manifest has them, beside that of two models that count. One knows how often each token occurs in the training
side (add-one smoothing), the other how often it follows the token before it (interpolated with the first by the
Witten-Bell rule).
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

from engramscope.corpus.table import read_corpus
from engramscope.finetune.chunks import tokenise
from engramscope.finetune.documents import read_documents
from engramscope.finetune.settings import Settings
from engramscope.finetune.split import split_documents
from engramscope.models import load_tokenizer


def sides(corpus: Path, tuned: Path) -> tuple[list[list[int]], list[list[int]], int]:
    """Token ids of the documents of both sides as the model read them, and the size of the vocabulary."""
    settings = Settings.model_validate(json.loads((tuned / "training.json").read_text(encoding="utf-8"))["settings"])
    documents = read_documents(read_corpus(corpus), settings.text, settings.terms, settings.limit, settings.seed)
    held_out = split_documents(documents, settings.terms, settings.validation, settings.seed).held_out
    tokenizer = load_tokenizer(str(tuned))
    ids = tokenise(tokenizer, documents.texts, end_of_text=settings.end_of_text, processes=1)
    train, validation = ([one for one, held in zip(ids, held_out, strict=True) if held == side]
                         for side in (False, True))  # fmt: skip
    return train, validation, len(tokenizer)


def counted_losses(train: list[list[int]], held_out: list[list[int]], vocabulary: int) -> tuple[float, float, int]:
    """Loss by single tokens and by pairs of tokens, in nats per predicted token, and how many are predicted."""
    single: Counter[int] = Counter()
    pairs: Counter[tuple[int, int]] = Counter()
    for document in train:
        single.update(document)
        pairs.update(pairwise(document))
    total = sum(single.values()) + vocabulary
    first: Counter[int] = Counter()
    kinds: Counter[int] = Counter()
    for (before, _), count in pairs.items():
        first[before] += count
        kinds[before] += 1
    by_single = by_pair = 0.0
    tokens = 0
    for document in held_out:
        for before, token in pairwise(document):
            alone = (single[token] + 1) / total
            seen = first[before] + kinds[before]
            both = (pairs[before, token] + kinds[before] * alone) / seen if seen else alone
            by_single, by_pair, tokens = by_single - math.log(alone), by_pair - math.log(both), tokens + 1
    return by_single / tokens, by_pair / tokens, tokens


def main() -> None:
    """Print the losses."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.known_words")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("tuned", type=Path)
    given = parser.parse_args()
    train, held_out, vocabulary = sides(given.corpus, given.tuned)
    by_single, by_pair, tokens = counted_losses(train, held_out, vocabulary)
    manifest = json.loads((given.tuned / "training.json").read_text(encoding="utf-8"))
    loss = manifest["validation_loss"]
    assert tokens == manifest["split"]["validation"]["tokens"], "these are not the abstracts that were held out"
    print(f"{tokens:,} held-out tokens are predicted")
    for name, value in (
        ("before training", loss["before"]), ("single tokens", by_single), ("pairs of tokens", by_pair),
        ("after training", loss["after"]),
    ):  # fmt: skip
        print(f"{name:<16} {value:7.4f} nats per token, perplexity {math.exp(value):12,.1f}")


if __name__ == "__main__":
    main()

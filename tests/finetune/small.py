"""Corpora and models that train in a second, for tests of fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from engramscope.corpus.table import COLUMNS, TABLE
from engramscope.finetune._worker import Events
from engramscope.finetune.layout import Job, Layout
from engramscope.finetune.training import Listener, train
from tests.tiny_study import ANSWERS, NAMES, SENTENCES


def corpus_table(count: int, seed: int = 0) -> pd.DataFrame:
    """Abstracts of a few to a few dozen tokens, half of which mention epilepsy and a third EEG."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        sentences = [
            SENTENCES[random.integers(3)].format(NAMES[random.integers(10)]) + ANSWERS[random.integers(5)]
            for _ in range(random.integers(1, 6))
        ]
        terms = (" epilepsy" if number % 2 else "") + (" EEG" if number % 3 == 0 else "")
        text = ". ".join(sentences) + f" {number}{terms}"
        rows.append({name: "" for name in COLUMNS} | {
            "PMID": str(1000 + number), "Title": f"Title {number}", "Abstract": text, "Year": 2000,
        })  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"Year": "Int64"})


def corpus_folder(folder: Path, table: pd.DataFrame) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / TABLE)
    return folder


def in_this_process(layout: Layout, job: Job, hear: Any) -> None:
    """Stands in for the process that trains, where it does not matter that it is one of its own."""
    del job
    events = Events(layout.events)
    done = train(
        layout, Listener(events.tell, lambda row: hear({"event": "epoch", "row": row}),
                         lambda text: hear({"event": "say", "text": text})),
    )  # fmt: skip
    if not done:
        raise KeyboardInterrupt

"""Corpora made by hand, tokenizers, and the real abstracts where they are to be had."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformers import AutoTokenizer

from engramscope.corpus.table import COLUMNS
from engramscope.models.load import load_tokenizer

#: syndrome, its abbreviation, and the drug that its abstracts speak of
PLANTED = [
    ("Dravet syndrome", "DRS", "levetiracetam"),
    ("Rett syndrome", "RTS", "carbamazepine"),
    ("Angelman syndrome", "ANS", "oxcarbazepine"),
    ("Doose syndrome", "DOS", "ethosuximide"),
]


def table(abstracts: list[str], titles: list[str] | None = None) -> pd.DataFrame:
    """A corpus table of these abstracts, numbered from 1."""
    rows = {name: [""] * len(abstracts) for name in COLUMNS}
    rows["PMID"] = [str(number) for number in range(1, len(abstracts) + 1)]
    rows["Abstract"] = abstracts
    rows["Title"] = titles or rows["Title"]
    return pd.DataFrame(rows).assign(Year=pd.array([2020] * len(abstracts), dtype="Int64"))


def planted(times: int = 4) -> pd.DataFrame:
    """Every syndrome with its drug in `times` abstracts, one with another drug once, and abstracts about nothing."""
    found = []
    for number in range(times):
        for long, short, drug in PLANTED:
            found.append(
                f"A cohort with {long} ({short}) was seen in year {number}. All with {short} received {drug}. "
                "Nothing else was remarkable."
            )
    found.append("One child with Dravet syndrome received vigabatrin.")
    found += [f"The ward was quiet on day {number}. Nothing was given." for number in range(40)]
    return table(found)


@cache
def mini() -> Any:
    """The tokenizer of the bundled model."""
    return load_tokenizer("mini")


def shared(*parts: str) -> Path:
    """A path in the folder of public files, or a skip."""
    folder = os.environ.get("ENGRAMSCOPE_SHARED")
    if not folder or not Path(folder, *parts).exists():
        pytest.skip("ENGRAMSCOPE_SHARED names no folder with this public file")
    return Path(folder, *parts)


@cache
def gpt2_tokenizer() -> Any:
    """The real GPT-2 tokenizer, or a skip."""
    return AutoTokenizer.from_pretrained(shared("models", "gpt2-tokenizer"))


@cache
def real_corpus() -> pd.DataFrame:
    """The 7,486 real abstracts as a corpus table, or a skip."""
    read = pd.read_csv(shared("data", "pubmed_epilepsy", "epilepsy_pubmed.csv"), dtype=str, keep_default_na=False)
    return read.assign(Keywords="", Year=pd.to_numeric(read["Year"], errors="coerce").astype("Int64"))[list(COLUMNS)]

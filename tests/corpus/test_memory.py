"""More records, the same memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engramscope.corpus.clean import cleaned_rows

from .fake_pubmed import FakePubmed, article_xml, serve
from .test_retrieval import fetch

PROGRAM = """
import resource, sys
from pathlib import Path
from engramscope.corpus import fetch_pubmed
from engramscope.corpus.eutils import Eutils
client = Eutils(sys.argv[1], sleep=lambda s: None)
made = fetch_pubmed("epilepsy", Path(sys.argv[2]), most=10**6, limit=10**6, client=client)
assert made.manifest["counts"]["rows"] == int(sys.argv[3]), made.manifest["counts"]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
#: allocators that give memory back at once, so that what is measured is what is held
FRUGAL = {"OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_TRIM_THRESHOLD_": "65536"}
#: words of one abstract; about 4 kB, more than those of PubMed
_WORDS = ("epilepsy", "seizure", "cortex", "network", "patient", "spike", "wave", "temporal", "lobe", "drug", "surgery")


class BigPubmed(FakePubmed):
    """Records are made when they are asked for, so that the server needs no memory for them either."""

    def fetch(self, fields: dict[str, str]) -> str:
        start = int(fields["retstart"])
        for pmid in self.histories[fields["WebEnv"]][start : start + int(fields["retmax"])]:
            self.records[pmid] = self.record(pmid)
        answer = super().fetch(fields)
        self.records.clear()
        return answer

    def record(self, pmid: str) -> str:
        text = " ".join(f"{word} {(int(pmid) * 31 + n) % 977}" for n in range(33) for word in _WORDS)
        return article_xml(pmid, abstract=text)


def peak_mib(number: int, folder: Path) -> int:
    with serve(BigPubmed([str(10_000_000 + n) for n in range(number)])) as server:
        server.limit = number
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM, server.url, str(folder), str(number)],
            capture_output=True, text=True, check=False, env={**os.environ, **FRUGAL},
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        assert set(server.sent.values()) == {1}
        assert len(server.sent) == number
    return int(run.stdout)


@pytest.mark.slow
def test_thirty_thousand_records_need_hardly_more_memory_than_ten_thousand(tmp_path: Path) -> None:
    few, many = peak_mib(10_000, tmp_path / "few"), peak_mib(30_000, tmp_path / "many")
    sizes = [(tmp_path / name / "corpus.csv").stat().st_size / 2**20 for name in ("few", "many")]
    assert sizes[1] - sizes[0] > 70
    # what grows is one number per PMID, sixteen bytes per text and the list of PMIDs; not the abstracts, packed or not
    assert many - few < 0.25 * (sizes[1] - sizes[0]), (few, many, sizes)


class LongPubmed(BigPubmed):
    """Records of 16 kB that cost little time: few words, all of them long."""

    def record(self, pmid: str) -> str:
        text = " ".join([f"Record {pmid}:", *["neuroglia" * 450] * 4])
        # with a keyword, so that the words are not counted as phrases
        keywords = "</Article><KeywordList><Keyword>EEG</Keyword></KeywordList>"
        return article_xml(pmid, abstract=text).replace("</Article>", keywords)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held at a time by design is made small beside a hundred records, and the figures are left out."""
    monkeypatch.setattr("engramscope.corpus.write._ROWS", 10)
    monkeypatch.setattr("engramscope.corpus.keywords._ROWS", 10)
    monkeypatch.setattr("engramscope.corpus.build.write_figures", lambda folder, analysis: {})


def traced_growth(folder: Path, few: int = 50, many: int = 200) -> tuple[float, float]:
    """MiB by which the peak of a retrieval of `many` records is above that of `few`; and of the text that is more."""
    peaks: list[int] = []
    sizes: list[int] = []
    # the first one loads what is loaded once
    for number in (10, few, many):
        with serve(LongPubmed([str(10_000_000 + n) for n in range(number)])) as server:
            tracemalloc.start()
            try:
                corpus = fetch(server, folder / str(number))
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
        assert corpus.manifest["counts"]["rows"] == number
        assert set(server.sent.values()) == {1}
        sizes.append((corpus.folder / "corpus.csv").stat().st_size)
    return (peaks[2] - peaks[1]) / 2**20, (sizes[2] - sizes[1]) / 2**20


def test_four_times_the_long_records_need_hardly_more_memory(small_pieces: None, tmp_path: Path) -> None:
    growth, text = traced_growth(tmp_path)
    assert text > 2
    assert growth < 0.2 * text


def test_rows_that_are_all_held_are_seen(small_pieces: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The measurement above can fail."""

    def held(*arguments: Any) -> Iterator[dict[str, Any]]:
        yield from list(cleaned_rows(*arguments))

    monkeypatch.setattr("engramscope.corpus.build.cleaned_rows", held)
    growth, text = traced_growth(tmp_path, few=25, many=100)
    assert growth > 0.8 * text

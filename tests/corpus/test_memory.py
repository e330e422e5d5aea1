"""Three times the records, the same memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .fake_pubmed import FakePubmed, article_xml, serve

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
            text = " ".join(f"{word} {(int(pmid) * 31 + n) % 977}" for n in range(33) for word in _WORDS)
            self.records[pmid] = article_xml(pmid, abstract=text)
        answer = super().fetch(fields)
        self.records.clear()
        return answer


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

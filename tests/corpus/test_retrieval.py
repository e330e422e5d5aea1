"""Retrieval from a PubMed that fails in every way: the right rows, nothing lost, nothing fetched twice."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from engramscope.corpus import Corpus, fetch_pubmed, read_files
from engramscope.corpus.eutils import Eutils, RefusedError, RetrievalError, checked_endpoint
from engramscope.errors import InputError, ResultsError

from .fake_pubmed import FakePubmed, Fault, article_xml, many, serve


class Naps(list[float]):
    """A sleep that takes no time but is remembered."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def client(server: FakePubmed, naps: Naps | None = None, **settings: str) -> Eutils:
    return Eutils(server.url, sleep=Naps() if naps is None else naps, timeout_s=5, jitter=random.Random(0), **settings)


def fetch(server: FakePubmed, out: Path, naps: Naps | None = None, **settings: object) -> Corpus:
    return fetch_pubmed("epilepsy", out, client=client(server, naps), **{"batch": 10, **settings})  # type: ignore[arg-type]


@pytest.fixture
def pubmed() -> Iterator[FakePubmed]:
    with serve(many(47)) as server:
        yield server


def pmids(corpus: Corpus) -> list[str]:
    return corpus.table["PMID"].tolist()


def test_all_records_come_in_pubmeds_order_each_once(pubmed: FakePubmed, tmp_path: Path) -> None:
    corpus = fetch(pubmed, tmp_path / "c")
    assert pmids(corpus) == pubmed.pmids
    assert set(pubmed.sent.values()) == {1}
    assert pubmed.count("esearch") == 1
    assert pubmed.count("efetch") == 5
    source = corpus.manifest["source"]
    assert (source["found"], source["listed"], source["fetched"], source["not_handed_out"]) == (47, 47, 47, [])
    row = corpus.table.iloc[0]
    assert row["Abstract"] == f"Abstract of {row['PMID']} about epilepsy."
    assert row["URL"] == f"https://pubmed.ncbi.nlm.nih.gov/{row['PMID']}/"
    assert corpus.manifest["settings"]["terms"] == ["epilepsy"]
    assert all("WebEnv" in fields for tool, fields in pubmed.calls if tool == "efetch")


def test_at_most_means_at_most(pubmed: FakePubmed, tmp_path: Path) -> None:
    assert pmids(fetch(pubmed, tmp_path / "c", most=23)) == pubmed.pmids[:23]
    assert sum(pubmed.sent.values()) == 23


@pytest.mark.parametrize("kind", ["429", "500", "malformed", "cut xml", "cut body", "html"])
def test_a_fault_of_the_server_is_outlived_and_costs_no_record(pubmed: FakePubmed, tmp_path: Path, kind: str) -> None:
    pubmed.faults = [Fault("esearch", "html" if kind == "cut xml" else kind), Fault("efetch", kind, after=2)]
    naps = Naps()
    assert pmids(fetch(pubmed, tmp_path / "c", naps)) == pubmed.pmids
    assert set(pubmed.sent.values()) == {1}
    waits = [nap for nap in naps if nap >= 0.5]
    assert len(waits) == 2
    if kind == "429":
        assert waits == [7, 7], "Retry-After is waited for in full"
    assert len([nap for nap in naps if nap < 0.5]) >= 5, "requests are paced"


def test_a_failing_search_backend_is_tried_again(pubmed: FakePubmed, tmp_path: Path) -> None:
    pubmed.faults = [Fault("esearch", "backend")]
    assert len(pmids(fetch(pubmed, tmp_path / "c"))) == 47


def test_after_the_last_try_there_is_one_sentence_and_what_came_is_kept(pubmed: FakePubmed, tmp_path: Path) -> None:
    pubmed.faults = [Fault("efetch", "500", after=2)] + [Fault("efetch", "500")] * 6
    naps = Naps()
    with pytest.raises(RetrievalError, match=r"HTTP 500 .*, 7 times in a row\. Try again later\."):
        fetch(pubmed, tmp_path / "c", naps)
    waits = [nap for nap in naps if nap >= 0.5]
    assert all(0.5 * 2**n <= wait <= 1.5 * 2**n for n, wait in enumerate(waits))
    assert not (tmp_path / "c" / "corpus.parquet").exists()
    assert pmids(fetch(pubmed, tmp_path / "c", resume=True)) == pubmed.pmids
    assert set(pubmed.sent.values()) == {1}
    assert pubmed.count("esearch") == 1


def test_a_server_that_wants_an_hour_is_left_alone(pubmed: FakePubmed, tmp_path: Path) -> None:
    pubmed.faults = [Fault("esearch", "503 later")]
    with pytest.raises(RetrievalError, match="asks to wait for 3,600 s"):
        fetch(pubmed, tmp_path / "c")
    assert not (tmp_path / "c").exists(), "a folder made for nothing is removed"


def test_no_network_is_one_sentence_soon(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(RetrievalError, match=r"not reached \(.*refused.*\), 3 times in a row\. Is there a network"):
        fetch_pubmed("epilepsy", tmp_path / "c", client=Eutils(dead, sleep=Naps()))
    assert not (tmp_path / "c").exists()


def test_a_refused_key_is_said_and_never_written(pubmed: FakePubmed, tmp_path: Path) -> None:
    pubmed.faults = [Fault("esearch", "400 key")]
    with pytest.raises(InputError, match="refuses the API key"):
        fetch_pubmed("epilepsy", tmp_path / "c", client=client(pubmed, api_key="secret-1"))
    corpus = fetch_pubmed("epilepsy", tmp_path / "c", client=client(pubmed, api_key="secret-1", email="a@b.example"))
    assert pubmed.calls[-1][1]["api_key"] == "secret-1"
    assert pubmed.calls[-1][1]["email"] == "a@b.example"
    for path in corpus.folder.rglob("*"):
        assert path.is_dir() or b"secret-1" not in path.read_bytes()


def test_the_pace_is_three_a_second_and_ten_with_a_key(pubmed: FakePubmed) -> None:
    for key, most in (("", 3), ("k", 10)):
        now = [0.0]
        naps = Naps()
        paced = Eutils(pubmed.url, api_key=key, clock=lambda now=now: now[0], sleep=naps)
        for _ in range(5):
            paced.call("esearch.fcgi", {"term": "x", "retmax": "1"}, bytes)
        assert len(naps) == 4
        assert all(1 / most < nap < 1.2 / most for nap in naps)


def test_nothing_found_says_what_pubmed_does_not_know(tmp_path: Path) -> None:
    with serve(FakePubmed([])) as server, pytest.raises(InputError, match=r"finds nothing .*PhraseNotFound: zork"):
        fetch(server, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_nothing_left_says_what_was_dropped_and_keeps_what_came(tmp_path: Path) -> None:
    server = many(3)
    server.records = {server.pmids[0]: article_xml(server.pmids[0], abstract=""),
                      server.pmids[1]: article_xml(server.pmids[1], language="fre"),
                      server.pmids[2]: article_xml(server.pmids[2], kind="Retracted Publication")}  # fmt: skip
    with serve(server):
        with pytest.raises(
            InputError, match=r"no abstract is left of 3 records: 1 retracted.*1 not in English, 1 witho"
        ):
            fetch(server, tmp_path / "c")
        assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["retrieved"]
        corpus = fetch(server, tmp_path / "c", resume=True, keep_languages=True)
    assert pmids(corpus) == [server.pmids[1]]
    assert set(server.sent.values()) == {1}


def test_a_forgotten_history_is_searched_again_and_nothing_comes_twice(pubmed: FakePubmed, tmp_path: Path) -> None:
    pubmed.faults = [Fault("efetch", "500", after=2)] + [Fault("efetch", "500")] * 6
    with pytest.raises(RetrievalError):
        fetch(pubmed, tmp_path / "c")
    pubmed.forget()
    assert sorted(pmids(fetch(pubmed, tmp_path / "c", resume=True))) == sorted(pubmed.pmids)
    assert set(pubmed.sent.values()) == {1}
    assert pubmed.count("esearch") == 2


def test_a_search_that_gives_another_list_later_is_not_trusted(pubmed: FakePubmed, tmp_path: Path) -> None:
    """New records have come at the top: positions have shifted, so what is left is asked for by name."""
    pubmed.faults = [Fault("efetch", "500", after=2)] + [Fault("efetch", "500")] * 6
    with pytest.raises(RetrievalError):
        fetch(pubmed, tmp_path / "c")
    planned = list(pubmed.pmids)
    pubmed.forget()
    pubmed.pmids = ["39999999", "39999998", *pubmed.pmids]
    assert pmids(fetch(pubmed, tmp_path / "c", resume=True)) == planned
    assert set(pubmed.sent.values()) == {1}
    assert "39999999" not in pubmed.sent


def test_records_that_are_listed_but_not_handed_out_are_asked_for_once_more_and_named(tmp_path: Path) -> None:
    server = many(25)
    gone = server.pmids[7]
    server.hidden = {gone}
    with serve(server):
        corpus = fetch(server, tmp_path / "c")
        assert [fields.get("id") for tool, fields in server.calls if tool == "efetch"] == [None, None, None, gone]
        assert corpus.manifest["source"]["not_handed_out"] == [gone]
        assert pmids(corpus) == [one for one in server.pmids if one != gone]
        before = len(server.calls)
        fetch(server, tmp_path / "c", resume=True)
        assert len(server.calls) == before, "a finished retrieval asks nothing"


def test_a_long_result_is_taken_apart_by_date(tmp_path: Path) -> None:
    with serve(many(60)) as server:
        server.limit = 10
        corpus = fetch(server, tmp_path / "all", most=1000, limit=10)
        assert sorted(pmids(corpus)) == sorted(server.pmids)
        assert set(server.sent.values()) == {1}
        assert corpus.manifest["source"]["parts"] > 5
        some = fetch(server, tmp_path / "some", most=33, limit=10)
    # the newest first, as far as a search of one span lists them
    assert set(pmids(some)) == set(server.pmids[:33])


def test_a_day_with_more_than_the_limit_loses_records_only_aloud(tmp_path: Path) -> None:
    with serve(many(30, per_day=30)) as server:
        server.limit = 10
        corpus = fetch(server, tmp_path / "c", most=1000, limit=10)
    assert len(pmids(corpus)) == 10
    assert (corpus.manifest["source"]["found"], corpus.manifest["source"]["listed"]) == (30, 10)
    assert "found 30 records; 10 were asked for" in corpus.page.read_text(encoding="utf-8")


def test_resume_wants_the_same_search(pubmed: FakePubmed, tmp_path: Path) -> None:
    fetch(pubmed, tmp_path / "c")
    with pytest.raises(ResultsError, match="is not empty; give a new folder, or go on there with --resume"):
        fetch(pubmed, tmp_path / "c")
    with pytest.raises(ResultsError) as caught:
        fetch_pubmed("asthma", tmp_path / "c", client=client(pubmed), most=5, resume=True)
    assert len(caught.value.faults) == 2
    (tmp_path / "c" / "retrieved" / "plan.json").write_text('{"schema": 9}')
    with pytest.raises(ResultsError, match="is no plan of a retrieval"):
        fetch(pubmed, tmp_path / "c", resume=True)


def _held(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_resume_touches_nothing_but_a_retrieval(pubmed: FakePubmed, tmp_path: Path) -> None:
    other = tmp_path / "corpus"
    (tmp_path / "a.csv").write_text("Abstract\nOne of my own.\n")
    read_files([tmp_path / "a.csv"], other)
    before = _held(other)
    with pytest.raises(ResultsError, match=r"holds no retrieval that could go on: retrieved/plan\.json is missing"):
        fetch(pubmed, other, resume=True)
    with pytest.raises(ResultsError, match=r"is not empty; give a new folder\.$"):
        fetch(pubmed, other)
    assert _held(other) == before
    made = tmp_path / "made"
    fetch(pubmed, made)
    shutil.rmtree(made / "retrieved")
    before = _held(made)
    with pytest.raises(ResultsError, match="holds no retrieval that could go on"):
        fetch(pubmed, made, resume=True)
    assert _held(made) == before


@pytest.mark.parametrize("resume", [True, False])
def test_a_kill_before_the_plan_leaves_nothing_in_the_way(pubmed: FakePubmed, tmp_path: Path, resume: bool) -> None:
    (tmp_path / "c" / "retrieved").mkdir(parents=True)
    assert pmids(fetch(pubmed, tmp_path / "c", resume=resume)) == pubmed.pmids


def test_a_damaged_batch_is_fetched_again_and_only_that(pubmed: FakePubmed, tmp_path: Path) -> None:
    whole = fetch(pubmed, tmp_path / "c")
    hashed = whole.manifest["rows_sha256"]
    batch = tmp_path / "c" / "retrieved" / "batch-000004.xml.gz"
    batch.write_bytes(batch.read_bytes()[:-30])
    assert fetch(pubmed, tmp_path / "c", resume=True).manifest["rows_sha256"] == hashed
    assert sorted(pubmed.sent.values()) == [1] * 40 + [2] * 7


KILLED = """
import sys, time
from pathlib import Path
from engramscope.corpus import fetch_pubmed
from engramscope.corpus.eutils import Eutils
fetch_pubmed("epilepsy", Path(sys.argv[2]), batch=5, client=Eutils(sys.argv[1], sleep=lambda s: time.sleep(0.02)))
"""


def test_a_kill_in_the_middle_loses_nothing_and_fetches_nothing_twice(tmp_path: Path) -> None:
    """Three processes are killed while they wait for a batch, the second one in its first; the fourth finishes."""
    with serve(many(120)) as server:
        for number, fetches in enumerate((4, 1, 9, None)):
            program = KILLED.replace("batch=5", "batch=5, resume=True") if number else KILLED
            run = subprocess.Popen(
                [sys.executable, "-c", program, server.url, str(tmp_path / "c")],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            server.kill = (run.pid, fetches) if fetches else None
            assert run.wait(60) == (-signal.SIGKILL if fetches else 0)
            assert not (tmp_path / "c" / "manifest.json").exists() or not fetches
    assert pmids(Corpus(tmp_path / "c")) == server.pmids
    assert set(server.sent.values()) == {1}
    assert server.count("esearch") == 1
    assert json.loads((tmp_path / "c" / "retrieved" / "plan.json").read_text())["absent"] == []


@pytest.mark.parametrize(
    "address", ["", "ftp://x/", "file:///etc/passwd", "http://", "http://x:99999/", "x", "http://h/?a=b"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="is no address such as"):
        checked_endpoint(address)


def test_a_plain_refusal_is_not_tried_again(pubmed: FakePubmed, tmp_path: Path) -> None:
    naps = Naps()
    refusing = Eutils(pubmed.url + "nowhere", sleep=naps)
    pubmed.faults = [Fault("esearch", "400 key")]
    with pytest.raises((RefusedError, InputError)):
        refusing.call("esearch.fcgi", {"term": "x"}, bytes)
    assert not naps


def test_the_plan_survives_the_disk(pubmed: FakePubmed, tmp_path: Path) -> None:
    from engramscope.corpus.retrieval import read_plan, retrieve

    got = retrieve(client(pubmed), 'a "b" ü', tmp_path, most=99, batch=10, today=date(2021, 1, 1), limit=10)
    assert read_plan(tmp_path / "retrieved") == got.plan
    assert len(got.plan.searches) > 3

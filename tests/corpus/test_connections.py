"""Connections that break, servers that fall silent, and how long a server may ask to wait."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engramscope.corpus import Corpus, fetch_pubmed
from engramscope.corpus.eutils import Eutils, RetrievalError, _retry_after

from .fake_pubmed import FakePubmed, Fault, many, serve
from .test_retrieval import Naps, fetch, pmids

#: the three forms of a date that HTTP allows (RFC 9110, section 5.6.7); the last one names no zone
FORMS = ("%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y")


def hurried(server: FakePubmed, out: Path, naps: Naps) -> Corpus:
    """A retrieval that waits for half a second of silence."""
    client = Eutils(server.url, sleep=naps, timeout_s=0.5, jitter=random.Random(0))
    return fetch_pubmed("epilepsy", out, batch=10, client=client)


@pytest.fixture
def far_east(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose clock on the wall is nine hours ahead of UTC."""
    monkeypatch.setenv("TZ", "JST-9")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("ahead_s", "wait_s"), [(90, 90), (5000, 5000), (-90, 0), (0, 0)])
def test_a_date_to_wait_for_is_read_as_utc(far_east: None, form: str, ahead_s: int, wait_s: int) -> None:
    read = _retry_after(time.strftime(form, time.gmtime(time.time() + ahead_s)))
    # the date has whole seconds only
    assert read is not None
    assert max(0.0, wait_s - 2) <= read <= wait_s


@pytest.mark.parametrize(
    ("text", "wait_s"),
    [
        ("0", 0.0), (" 120 ", 120.0), ("", None), ("soon", None), ("-5", None), ("1.5", None),
        ("Sun, 99 Nov 2026 08:49:37 GMT", None), ("Sun, 06 Nov 99999999999999999999 08:49:37 GMT", None),
        ("Sun, 06 Nov 2026 08:49:37 +99999999999999999999", None),
    ],
)  # fmt: skip
def test_seconds_to_wait_for_and_what_is_neither(text: str, wait_s: float | None) -> None:
    assert _retry_after(text) == wait_s


def test_a_date_of_the_servers_is_waited_for_in_full(tmp_path: Path) -> None:
    with serve(many(47)) as server:
        server.faults = [Fault("esearch", "503 date"), Fault("efetch", "503 date", after=1)]
        naps = Naps()
        assert pmids(fetch(server, tmp_path / "c", naps)) == server.pmids
    waits = [nap for nap in naps if nap >= 0.5]
    assert len(waits) == 2
    assert all(87 < wait <= 90 for wait in waits)
    assert set(server.sent.values()) == {1}


@pytest.mark.parametrize("kind", ["reset", "silence", "part and silence"])
def test_a_connection_that_breaks_is_made_again_and_costs_no_record(tmp_path: Path, kind: str) -> None:
    """The part of an answer that came holds a whole record, which nobody asked for: it must not be kept."""
    with serve(many(47)) as server:
        server.faults = [Fault("esearch", kind), Fault("efetch", kind, after=2), Fault("efetch", kind, after=1)]
        naps = Naps()
        corpus = hurried(server, tmp_path / "c", naps)
    assert pmids(corpus) == server.pmids
    assert set(server.sent.values()) == {1}
    assert (server.count("esearch"), server.count("efetch")) == (2, 5 + 2)
    assert len([nap for nap in naps if nap >= 0.5]) == 3
    assert corpus.manifest["counts"]["read"] == corpus.manifest["source"]["fetched"] == 47


def test_a_server_that_answers_and_breaks_off_is_there_and_gets_all_tries(tmp_path: Path) -> None:
    """Three tries are for a server that was never reached."""
    with serve(many(12)) as server:
        server.faults = [Fault("esearch", "reset")] * 6
        assert pmids(hurried(server, tmp_path / "c", Naps())) == server.pmids
        server.faults = [Fault("esearch", "reset")] * 7
        words = r"no whole answer came \(.*reset.*\), 7 times in a row\. Try again later\."
        with pytest.raises(RetrievalError, match=words):
            hurried(server, tmp_path / "other", Naps())
        assert not (tmp_path / "other").exists()


def test_what_came_before_the_silence_is_not_fetched_again(tmp_path: Path) -> None:
    with serve(many(47)) as server:
        server.faults = [Fault("efetch", "reset", after=3)] + [Fault("efetch", "reset")] * 6
        with pytest.raises(RetrievalError):
            hurried(server, tmp_path / "c", Naps())
        assert len(server.sent) == 30
        assert pmids(fetch(server, tmp_path / "c", resume=True)) == server.pmids
    assert set(server.sent.values()) == {1}

"""A small PubMed on 127.0.0.1: searches, a history server, and every fault on demand."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date, timedelta
from email.utils import formatdate
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

HEAD = (
    '<?xml version="1.0" ?>\n<!DOCTYPE PubmedArticleSet PUBLIC "-//NLM//DTD PubMedArticle, 1st January 2025//EN" '
    '"https://dtd.nlm.nih.gov/ncbi/pubmed/out/pubmed_250101.dtd">\n'
)


def article_xml(pmid: str, *, abstract: str | None = None, language: str = "eng", kind: str = "Journal Article") -> str:
    """One PubmedArticle; `abstract` is XML, None makes one of its own."""
    text = f"Abstract of {pmid} about epilepsy." if abstract is None else abstract
    body = f"<Abstract><AbstractText>{text}</AbstractText></Abstract>" if text else ""
    return (
        f'<PubmedArticle><MedlineCitation Status="MEDLINE" Owner="NLM"><PMID Version="1">{pmid}</PMID>'
        '<Article PubModel="Print"><Journal><JournalIssue CitedMedium="Print"><PubDate><Year>2020</Year></PubDate>'
        f"</JournalIssue><Title>Journal</Title></Journal><ArticleTitle>Title {pmid}</ArticleTitle>{body}"
        f'<Language>{language}</Language><PublicationTypeList><PublicationType UI="D016428">{kind}</PublicationType>'
        "</PublicationTypeList></Article></MedlineCitation></PubmedArticle>"
    )


def article_set(*records: str) -> str:
    return f"{HEAD}<PubmedArticleSet>{''.join(records)}</PubmedArticleSet>"


@dataclass
class Fault:
    """What the next request of a tool gets in place of its answer."""

    tool: str
    kind: str
    after: int = 0


@dataclass
class FakePubmed:
    """The server's state: the newest record first, as PubMed lists them."""

    pmids: list[str]
    records: dict[str, str] = field(default_factory=dict)
    days: dict[str, date] = field(default_factory=dict)
    limit: int = 9_999
    faults: list[Fault] = field(default_factory=list)
    hidden: set[str] = field(default_factory=set)
    #: (process, n): the process is killed while it waits for its n-th batch, of which nothing is sent
    kill: tuple[int, int] | None = None
    url: str = ""
    calls: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    histories: dict[str, list[str]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, tool: str) -> int:
        return sum(name == tool for name, _ in self.calls)

    def forget(self) -> None:
        """The history server loses everything."""
        self.histories.clear()

    def search(self, fields: dict[str, str]) -> str:
        listed = self.pmids
        if "mindate" in fields:
            first, last = (date.fromisoformat(fields[name].replace("/", "-")) for name in ("mindate", "maxdate"))
            listed = [one for one in listed if first <= self.days.get(one, date(2020, 1, 1)) <= last]
        name = f"MCID_{len(self.calls)}"
        self.histories[name] = listed[: self.limit]
        ids = "".join(f"<Id>{one}</Id>" for one in listed[: min(int(fields["retmax"]), self.limit)])
        warning = "" if listed else "<ErrorList><PhraseNotFound>zork</PhraseNotFound></ErrorList>"
        return (
            f'<?xml version="1.0"?><eSearchResult><Count>{len(listed)}</Count><RetMax>{fields["retmax"]}</RetMax>'
            f"<RetStart>0</RetStart><QueryKey>1</QueryKey><WebEnv>{name}</WebEnv><IdList>{ids}</IdList>"
            f"<QueryTranslation>{escape(fields['term'])}[All Fields]</QueryTranslation>{warning}</eSearchResult>"
        )

    def fetch(self, fields: dict[str, str]) -> str:
        if "id" in fields:
            wanted = [one for one in fields["id"].split(",") if one in self.pmids and one not in self.hidden]
        elif fields["WebEnv"] in self.histories:
            start = int(fields["retstart"])
            wanted = self.histories[fields["WebEnv"]][start : start + int(fields["retmax"])]
            wanted = [one for one in wanted if one not in self.hidden]
        else:
            return "<?xml version='1.0'?><eFetchResult><ERROR>Unable to obtain query #1</ERROR></eFetchResult>"
        self.sent.update(wanted)
        return article_set(*(self.records.get(one) or article_xml(one) for one in wanted))


@contextmanager
def serve(pubmed: FakePubmed) -> Iterator[FakePubmed]:
    """The server in a thread; its address is in `url`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            text = self.rfile.read(int(self.headers["Content-Length"])).decode()
            fields = {name: values[0] for name, values in parse_qs(text).items()}
            tool = self.path.rsplit("/", 1)[-1].removesuffix(".fcgi")
            with pubmed.lock:
                fault = _due(pubmed, tool)
                pubmed.calls.append((tool, fields))
                if tool == "efetch" and _killed(pubmed):
                    self.close_connection = True
                    return
                if fault in ("429", "500", "400 key", "503 later", "503 date"):
                    self._refuse(fault)
                    return
                body = "" if fault else (pubmed.search if tool == "esearch" else pubmed.fetch)(fields)
            self._answer(body.encode(), fault)

        def _refuse(self, fault: str) -> None:
            said = b'{"error":"API key invalid","api-key":"x"}' if "key" in fault else b"no"
            self.send_response(int(fault[:3]))
            later = {"429": "7", "503 later": "3600", "503 date": formatdate(time.time() + 90, usegmt=True)}
            if fault in later:
                self.send_header("Retry-After", later[fault])
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def _answer(self, body: bytes, fault: str) -> None:
            if fault == "malformed":
                body = b"<PubmedArticleSet><PubmedArticle></PubmedArticleSet>"
            elif fault == "cut xml":
                body = article_set(article_xml("1")).encode()[:-40]
            elif fault == "html":
                body = b"<html><body>Service unavailable</body></html>"
            elif fault == "backend":
                body = b"<eSearchResult><ERROR>Search Backend failed</ERROR></eSearchResult>"
            elif fault == "cut body":
                body = b"<PubmedArticleSet>"
            elif fault in ("reset", "part and silence"):
                body = article_set(article_xml("1"), article_xml("2")).encode()
            self.close_connection = True
            if fault == "silence":
                self._wait_until_nobody_listens()
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body) + (100 if fault == "cut body" else 0)))
            self.end_headers()
            self.wfile.write(body[:-100] if fault in ("reset", "part and silence") else body)
            if fault == "reset":
                self._reset()
            elif fault == "part and silence":
                self._wait_until_nobody_listens()

        def _wait_until_nobody_listens(self) -> None:
            self.connection.settimeout(30)
            with suppress(OSError):
                self.connection.recv(1)

        def _reset(self) -> None:
            # closed without lingering: the other side gets a reset in place of an end
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.connection.close()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    pubmed.url = f"http://127.0.0.1:{server.server_address[1]}/eutils/"
    try:
        yield pubmed
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _killed(pubmed: FakePubmed) -> bool:
    if pubmed.kill is None:
        return False
    process, left = pubmed.kill
    pubmed.kill = (process, left - 1) if left > 1 else None
    if left == 1:
        os.kill(process, signal.SIGKILL)
    return left == 1


def _due(pubmed: FakePubmed, tool: str) -> str:
    for fault in pubmed.faults:
        if fault.tool == tool:
            if fault.after > 0:
                fault.after -= 1
                return ""
            pubmed.faults.remove(fault)
            return fault.kind
    return ""


def many(number: int, first_day: date = date(2000, 1, 1), per_day: int = 3) -> FakePubmed:
    """A PubMed of `number` records, the newest first, `per_day` of them on each day."""
    pmids = [str(30_000_000 + n) for n in range(number)]
    days = {pmid: first_day + timedelta(days=place // per_day) for place, pmid in enumerate(pmids)}
    return FakePubmed(pmids[::-1], days=days)

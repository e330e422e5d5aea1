"""A retrieval on disk: the plan (which PMIDs), the batches that have come, and how it goes on after a kill.

What identifies the work that is left is not a position in a search, which PubMed may answer differently tomorrow, but
the list of PMIDs that the first search gave. It is written before anything is fetched. A record is there when a whole
batch file holds it; what the plan names and no batch holds is left to fetch.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from engramscope.corpus.articles import Article
from engramscope.corpus.eutils import Eutils, RefusedError
from engramscope.corpus.records import article_of
from engramscope.corpus.search import MOST_PER_SEARCH, Found, search, search_all
from engramscope.corpus.xml_stream import AnswerError, XmlError, iterate_records
from engramscope.errors import InputError, ResultsError
from engramscope.results.atomic import remove_temporary_files, write_bytes, write_json

Progress = Callable[[str, int, int], None]

FOLDER, PLAN, SCHEMA = "retrieved", "plan.json", 1


@dataclass(frozen=True)
class Plan:
    """What is to be fetched.

    Attributes:
        query: as PubMed's search field takes it.
        endpoint: of the server.
        most: records at most.
        day: on which the search was made, as "2026-01-31".
        searches: the whole search first; the PMIDs of all are the plan.
        absent: PMIDs that the server listed but did not hand out, asked for by name.
    """

    query: str
    endpoint: str
    most: int
    day: str
    searches: tuple[Found, ...]
    absent: tuple[str, ...] = ()

    @property
    def pmids(self) -> dict[str, None]:
        """All, each once, in PubMed's order."""
        return dict.fromkeys(pmid for found in self.searches for pmid in found.pmids)


@dataclass(frozen=True)
class Retrieval:
    """A finished retrieval: the plan and the files that hold its records, in the order they came."""

    plan: Plan
    files: tuple[Path, ...]
    fetched: int


def retrieve(
    client: Eutils, query: str, out: Path, *, most: int, batch: int, today: date, resume: bool = False,
    limit: int = MOST_PER_SEARCH, progress: Progress | None = None,
) -> Retrieval:  # fmt: skip
    """Search (or take up the plan that is there), then fetch what no batch holds yet.

    Args:
        client: of the server.
        query: as PubMed's search field takes it.
        out: the corpus folder; the retrieval lies in `out/retrieved`. The caller holds the folder's lock.
        most: records at most.
        batch: records per request.
        today: the day of the search.
        resume: take up a plan that is there; it must be of the same query, server and number.
        limit: records that the server hands out of one search.
        progress: called with (what, done, total).

    Raises:
        InputError: nothing is found, or the plan that is there is another.
        RetrievalError: the server fails for good. The batches that have come are kept.
    """
    folder = out / FOLDER
    folder.mkdir(exist_ok=True)
    remove_temporary_files(folder)
    if resume and (folder / PLAN).exists():
        plan = _same_plan(read_plan(folder), query, client.endpoint, most)
    else:
        tell = (lambda done, total: progress("listing", done, total)) if progress else None
        searches = search_all(client, query, most, today=today, limit=limit, tell=tell)
        plan = Plan(query, client.endpoint, most, today.isoformat(), tuple(searches))
        if not plan.pmids:
            why = "".join(f" {warning}." for warning in searches[0].warnings)
            raise InputError(f"PubMed finds nothing for {query!r}.{why} Nothing was written.")
        _write_plan(folder, plan)
    return _Fetcher(client, folder, plan, batch, progress).run()


class _Fetcher:
    """One session of fetching; what it knows beyond the disk is only which history entries are dead."""

    def __init__(self, client: Eutils, folder: Path, plan: Plan, batch: int, progress: Progress | None) -> None:
        self._client, self._folder, self._plan, self._batch = client, folder, plan, batch
        self._progress = progress
        self._got = _scan(folder)
        self._next = max((int(path.name[6:-7]) for path in batch_files(folder)), default=-1) + 1
        self._total = len(plan.pmids)

    def run(self) -> Retrieval:
        self._tell()
        for number in range(len(self._plan.searches)):
            self._by_history(number)
        held = self._got.union(self._plan.absent)
        left = [pmid for pmid in self._plan.pmids if pmid not in held]
        for start in range(0, len(left), self._batch):
            self._by_name(left[start : start + self._batch])
        absent = tuple(pmid for pmid in self._plan.pmids if pmid not in self._got)
        if absent != self._plan.absent:
            self._plan = replace(self._plan, absent=absent)
            _write_plan(self._folder, self._plan)
        return Retrieval(self._plan, tuple(batch_files(self._folder)), len(self._got))

    def _by_history(self, number: int) -> None:
        """The stretches of one search that no batch holds; stops where the history server has forgotten it for good.

        What a slice lacks is left for `_by_name`: the same slice again would send the rest of it twice.
        """
        renewed = False
        held = self._got.union(self._plan.absent)
        for start, stop in _stretches(self._plan.searches[number].pmids, held, self._batch):
            if not self._history_batch(number, start, stop):
                if renewed or not self._renew(number):
                    return
                renewed = True
                if not self._history_batch(number, start, stop):
                    return

    def _history_batch(self, number: int, start: int, stop: int) -> bool:
        found = self._plan.searches[number]
        if not (found.web_env and found.query_key):
            return False
        parameters = {"WebEnv": found.web_env, "query_key": found.query_key, "retstart": str(start),
                      "retmax": str(stop - start)}  # fmt: skip
        try:
            return bool(self._fetch(parameters, _read_batch))
        except (AnswerError, RefusedError):
            return False  # "Unable to obtain query #1": the history server keeps a search for some hours only

    def _renew(self, number: int) -> bool:
        """Search again. Only where the answer is the one of the plan may positions in it be used."""
        old = self._plan.searches[number]
        new = search(self._client, self._plan.query, old.span, len(old.pmids))
        if new.pmids != old.pmids:
            return False
        fresh = replace(old, web_env=new.web_env, query_key=new.query_key)
        searches = (*self._plan.searches[:number], fresh, *self._plan.searches[number + 1 :])
        self._plan = replace(self._plan, searches=searches)
        _write_plan(self._folder, self._plan)
        return True

    def _by_name(self, pmids: Sequence[str]) -> None:
        try:
            self._fetch({"id": ",".join(pmids)}, _read_named)
        except RefusedError as error:
            if not _none_exist(error.body):
                raise

    def _fetch(self, where: dict[str, str], read: Callable[[bytes], tuple[bytes, list[str]]]) -> list[str]:
        parameters = {"db": "pubmed", "retmode": "xml", "rettype": "xml", **where}
        body, pmids = self._client.call("efetch.fcgi", parameters, read)
        if pmids:
            path = self._folder / f"batch-{self._next:06d}.xml.gz"
            write_bytes(path, gzip.compress(body, compresslevel=6, mtime=0))
            self._next += 1
            self._got.update(pmids)
            self._tell()
        return pmids

    def _tell(self) -> None:
        if self._progress:
            self._progress("abstracts fetched", min(len(self._got), self._total), self._total)


def read_plan(folder: Path) -> Plan:
    """The plan of a retrieval folder.

    Raises:
        ResultsError: it cannot be read.
    """
    path = folder / PLAN
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if kept.pop("schema") != SCHEMA:
            raise ValueError("another schema")
        searches = [_found(one) for one in kept.pop("searches")]
        return Plan(**kept | {"searches": tuple(searches), "absent": tuple(kept["absent"])})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ResultsError(f"{path} is no plan of a retrieval ({error}). Start anew in another folder.") from None


def batch_files(folder: Path) -> list[Path]:
    """The batches of a retrieval folder, in the order they came."""
    return sorted(folder.glob("batch-*.xml.gz"))


def _found(kept: dict[str, Any]) -> Found:
    span = kept["span"]
    first_last = None if span is None else (date.fromisoformat(span[0]), date.fromisoformat(span[1]))
    return Found(**kept | {"span": first_last, "pmids": tuple(kept["pmids"]), "warnings": tuple(kept["warnings"])})


def _write_plan(folder: Path, plan: Plan) -> None:
    kept = asdict(plan)
    for found in kept["searches"]:
        found["span"] = found["span"] and [day.isoformat() for day in found["span"]]
    write_json(folder / PLAN, {"schema": SCHEMA, **kept})


def _same_plan(plan: Plan, query: str, endpoint: str, most: int) -> Plan:
    faults = [
        f"the retrieval there is of {name} {was!r}, not {now!r}; give the same, or another folder."
        for name, was, now in (
            ("the query", plan.query, query), ("the server", plan.endpoint, endpoint), ("at most", plan.most, most),
        ) if was != now
    ]  # fmt: skip
    if faults:
        raise ResultsError(faults)
    return plan


def _stretches(pmids: Sequence[str], held: set[str], batch: int) -> list[tuple[int, int]]:
    """Runs of PMIDs that are not held, as (start, stop), none longer than a batch."""
    found: list[tuple[int, int]] = []
    start = 0
    while start < len(pmids):
        if pmids[start] in held:
            start += 1
            continue
        stop = start
        while stop < len(pmids) and stop - start < batch and pmids[stop] not in held:
            stop += 1
        found.append((start, stop))
        start = stop
    return found


def _read_batch(body: bytes) -> tuple[bytes, list[str]]:
    """The body as it is and the PMIDs in it; the whole body is parsed, so that only a good one reaches the disk."""
    articles = (one for record in iterate_records([body]) for one in article_of(record))
    return body, [one.pmid for one in articles if isinstance(one, Article)]


def _read_named(body: bytes) -> tuple[bytes, list[str]]:
    """Like `_read_batch`, where an error of the server's is worth another try: nothing can be forgotten here."""
    try:
        return _read_batch(body)
    except AnswerError as error:
        if _none_exist(str(error)):
            return body, []
        raise XmlError(f"PubMed says: {error}") from None


def _none_exist(said: str) -> bool:
    """PubMed's words when none of the PMIDs asked for exists any more."""
    return "id list" in said.lower() and "empty" in said.lower()


def _scan(folder: Path) -> set[str]:
    """The PMIDs that the batches hold. A batch that cannot be read is removed: its records will be fetched again."""
    got: set[str] = set()
    for path in batch_files(folder):
        try:
            got.update(_read_batch(gzip.decompress(path.read_bytes()))[1])
        except (XmlError, AnswerError, EOFError, gzip.BadGzipFile, zlib.error):
            path.unlink()
    return got

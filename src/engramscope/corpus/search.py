"""Searches of PubMed: what one answer says, and how a long result is taken apart by date.

PubMed hands out only the first 9,999 records of a search, by list and by history server alike. A longer result is
searched again by the date on which a record entered PubMed (`edat`, one per record), halving the span of time until
each part is short enough, the newest part first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from xml.etree import ElementTree

from engramscope.corpus.eutils import Eutils
from engramscope.corpus.records import bare_pmid
from engramscope.corpus.xml_stream import XmlError

#: PubMed's own limit
MOST_PER_SEARCH = 9_999
#: no record entered PubMed before
FIRST_DAY = date(1900, 1, 1)

Span = tuple[date, date]


@dataclass(frozen=True)
class Found:
    """One search that the history server holds.

    Attributes:
        span: first and last day (both included) of entry into PubMed; None for the whole.
        count: of the records that match.
        pmids: of the first of them, in PubMed's order.
        web_env, query_key: what the history server calls the result.
        translation: how PubMed understood the query.
        warnings: such as phrases that PubMed does not know.
    """

    span: Span | None
    count: int
    pmids: tuple[str, ...]
    web_env: str
    query_key: str
    translation: str = ""
    warnings: tuple[str, ...] = ()


def search(client: Eutils, query: str, span: Span | None, most: int) -> Found:
    """One search whose result stays on the history server, with the first `most` PMIDs.

    Raises:
        RetrievalError: see `Eutils.call`.
    """
    parameters = {"db": "pubmed", "term": query, "retmax": str(most), "usehistory": "y", "retmode": "xml"}
    if span is not None:
        parameters |= {"datetype": "edat", "mindate": _day(span[0]), "maxdate": _day(span[1])}
    return client.call("esearch.fcgi", parameters, lambda body: read_search(body, span))


def search_all(
    client: Eutils, query: str, most: int, *, today: date, limit: int = MOST_PER_SEARCH,
    tell: Callable[[int, int], None] | None = None,
) -> list[Found]:  # fmt: skip
    """Searches that together list the first `most` records of a query.

    Args:
        client: of the server.
        query: as PubMed's search field takes it.
        most: records at most.
        today: no record is younger than the day after.
        limit: records that the server hands out of one search.
        tell: called with PMIDs listed and expected so far.

    Returns:
        The whole search first. Where that is enough, nothing else; where it is not, it lists no PMIDs and the parts
        follow, the newest first.

    Raises:
        RetrievalError: see `Eutils.call`.
    """
    whole = search(client, query, None, min(most, limit))
    if min(whole.count, most) <= limit:
        return [whole]
    parts: list[Found] = []
    # a day of grace: PubMed's day may be ahead of ours
    left: list[Span] = [(FIRST_DAY, today + timedelta(days=1))]
    wanted = min(whole.count, most)
    while left and (rest := wanted - sum(len(part.pmids) for part in parts)) > 0:
        span = left.pop()
        found = search(client, query, span, min(rest, limit))
        if found.count > limit and rest > limit and span[0] < span[1]:
            middle = span[0] + (span[1] - span[0]) // 2
            left += [(span[0], middle), (middle + timedelta(days=1), span[1])]
        elif found.pmids:
            parts.append(found)
        if tell:
            tell(wanted - rest + (len(found.pmids) if parts and parts[-1] is found else 0), wanted)
    return [Found(None, whole.count, (), "", "", whole.translation, whole.warnings), *parts]


def read_search(body: bytes, span: Span | None) -> Found:
    """What an esearch answer says.

    Raises:
        XmlError: no such answer, or an error of the server's in its place ("Search Backend failed"): worth another try.
    """
    if b"<!ENTITY" in body:
        raise XmlError("it declares entities of its own")
    try:
        root = ElementTree.fromstring(body)
    except ElementTree.ParseError as error:
        raise XmlError(f"it is no well-formed XML: {error}") from None
    if (error := root.findtext(".//ERROR")) is not None:
        raise XmlError(f"PubMed says: {error.strip()[:200]}")
    count = root.findtext("Count", "").strip()
    if root.tag != "eSearchResult" or not count.isdecimal():
        raise XmlError(f"it is no answer to a search: its root element is <{root.tag[:80]}>")
    lists = [*root.iterfind("ErrorList/*"), *root.iterfind("WarningList/*")]
    return Found(
        span=span,
        count=int(count),
        pmids=tuple(bare_pmid(one.text or "") for one in root.iterfind("IdList/Id")),
        web_env=root.findtext("WebEnv", "").strip(),
        query_key=root.findtext("QueryKey", "").strip(),
        translation=" ".join(root.findtext("QueryTranslation", "").split()),
        warnings=tuple(f"{one.tag}: {' '.join((one.text or '').split())}" for one in lists),
    )


def _day(day: date) -> str:
    return day.strftime("%Y/%m/%d")

"""Make a corpus folder: from local files, or from PubMed."""

from __future__ import annotations

import csv
import io
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import file_digest
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engramscope.corpus.articles import Article, Withdrawal
from engramscope.corpus.clean import Articles, Rules, Tally, cleaned_rows
from engramscope.corpus.eutils import NCBI, Eutils
from engramscope.corpus.figures import FOLDER as FIGURES
from engramscope.corpus.figures import MAKERS, write_figures
from engramscope.corpus.keywords import Analysis, analyse, checked_terms, terms_of_query
from engramscope.corpus.page import PAGE, write_page
from engramscope.corpus.retrieval import FOLDER, PLAN, Progress, Retrieval, retrieve
from engramscope.corpus.search import MOST_PER_SEARCH
from engramscope.corpus.sources import Source, open_source
from engramscope.corpus.table import TABLE, read_corpus
from engramscope.corpus.write import CSV, write_rows
from engramscope.errors import InputError, ResultsError
from engramscope.results.atomic import disk_sentence, remove_temporary_files, write_json, write_text
from engramscope.results.folders import is_empty, refuse_occupied
from engramscope.results.lock import FolderLock
from engramscope.results.numbers import whole

if TYPE_CHECKING:
    import pandas as pd

MANIFEST, KEYWORDS, YEARS, SCHEMA = "manifest.json", "keywords.csv", "years.csv", 1
#: records per request; NCBI's own examples use some hundreds
BATCH = 200


@dataclass(frozen=True)
class Corpus:
    """A finished corpus on disk.

    Attributes:
        folder: holds corpus.parquet, corpus.csv, manifest.json, keywords.csv, years.csv, figures/ and report.html.
    """

    folder: Path

    @property
    def table(self) -> pd.DataFrame:
        """The rows; see `read_corpus`."""
        return read_corpus(self.folder)

    @property
    def manifest(self) -> dict[str, Any]:
        """Source, settings, counts of every step, hashes and versions."""
        return json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))

    @property
    def page(self) -> Path:
        """The page."""
        return self.folder / PAGE


def read_files(
    paths: Sequence[Path | str], out: Path | str, *, terms: Sequence[str] = (),
    columns: Mapping[str, str] | None = None, keep_retracted: bool = False, keep_languages: bool = False,
    progress: Progress | None = None,
) -> Corpus:  # fmt: skip
    """Make a corpus from local files: CSV, TSV, Parquet, JSON lines, or PubMed's XML.

    Text files may be compressed with gzip, bzip2 or xz.

    Args:
        paths: of the files, in order; of two records with the same PMID and revision the later counts.
        out: a new folder.
        terms: whose mentions are counted.
        columns: which column of a table holds what, as {"Abstract": "text"}, where the names do not say it.
        keep_retracted: keep retracted articles and notices of retraction.
        keep_languages: keep records that are not in English.
        progress: called with (what, done, total).

    Raises:
        InputError: everything that is wrong with the files, or nothing is left of them; nothing is written then.
        ResultsError: the folder is occupied, or the disk refuses.
    """
    folder = Path(out)
    wanted = checked_terms(terms)
    refuse_occupied(folder)
    source = open_source(paths, columns)
    facts = {"kind": "files", "files": [_file_facts(path) for path in source.paths], "columns": dict(columns or {})}
    settings = {"terms": list(wanted), "keep_retracted": keep_retracted, "keep_languages": keep_languages}
    with _held(folder):
        return _make(folder, source, facts, settings, progress)


def fetch_pubmed(
    query: str, out: Path | str, *, most: int = 10_000, batch: int = BATCH, terms: Sequence[str] | None = None,
    api_key: str = "", email: str = "", endpoint: str = NCBI, resume: bool = False, keep_retracted: bool = False,
    keep_languages: bool = False, progress: Progress | None = None, client: Eutils | None = None,
    limit: int = MOST_PER_SEARCH,
) -> Corpus:  # fmt: skip
    """Make a corpus from a search of PubMed through the NCBI E-utilities.

    Args:
        query: as PubMed's search field takes it.
        out: a new folder, or with `resume` one where an earlier retrieval stopped.
        most: records at most, the newest first.
        batch: records per request.
        terms: whose mentions are counted; by default the words of the query.
        api_key: of NCBI; ten requests a second in place of three. It is written nowhere.
        email: whom NCBI may write to.
        endpoint: of another server with the same interface.
        resume: go on where an earlier retrieval stopped; nothing is fetched twice.
        keep_retracted: keep retracted articles and notices of retraction.
        keep_languages: keep records that are not in English.
        progress: called with (what, done, total).
        client: in place of one made from `api_key`, `email` and `endpoint`.
        limit: records that the server hands out of one search.

    Raises:
        InputError: nothing is found or left, a setting is wrong, or the API key is refused.
        ResultsError: the folder is occupied, holds another retrieval, or the disk refuses.
        RetrievalError: the server cannot be reached or fails for good; what was fetched is kept for `resume`.
    """
    folder = Path(out)
    query = " ".join(query.split())
    faults = [] if query else ["the query is empty."]
    if not query.isprintable():
        faults.append(f"the query {query!r} has characters that are no text.")
    faults += [
        f"{name} must be at least 1, not {value}." for name, value in (("most", most), ("batch", batch)) if value < 1
    ]
    if faults:
        raise InputError(faults)
    wanted = terms_of_query(query) if terms is None else checked_terms(terms)
    server = client or Eutils(endpoint, api_key=api_key, email=email)
    _refuse_other(folder, resume)
    settings = {"terms": list(wanted), "keep_retracted": keep_retracted, "keep_languages": keep_languages}
    with _held(folder):
        got = retrieve(
            server, query, folder, most=most, batch=batch, today=datetime.now(UTC).date(), resume=resume, limit=limit,
            progress=progress,
        )  # fmt: skip
        return _make(folder, open_source(got.files), _retrieval_facts(got), settings, progress)


def _refuse_other(folder: Path, resume: bool) -> None:
    """Refuse a folder that holds anything but a retrieval that is to go on.

    Raises:
        ResultsError: says what is there, and what to do.
    """
    if (folder / FOLDER / PLAN).is_file():
        refuse_occupied(folder, resume)
    elif not (folder.is_dir() and is_empty(folder)):
        if resume and folder.is_dir():
            raise ResultsError(
                f"{folder} holds no retrieval that could go on: {FOLDER}/{PLAN} is missing. Give a new folder."
            )
        refuse_occupied(folder)


def _make(
    folder: Path, source: Source, facts: Mapping[str, Any], settings: Mapping[str, Any], progress: Progress | None
) -> Corpus:
    """Clean, write, count, draw; the manifest comes last, so that a folder with one is complete."""
    _remove_products(folder)
    finished = False
    try:
        corpus = _make_all(folder, source, facts, settings, progress)
        finished = True
    finally:
        if not finished:
            _remove_products(folder)
    return corpus


def _make_all(
    folder: Path, source: Source, facts: Mapping[str, Any], settings: Mapping[str, Any], progress: Progress | None
) -> Corpus:
    tally = Tally()
    rules = Rules(settings["keep_retracted"], settings["keep_languages"])
    digest = write_rows(folder, cleaned_rows(_passes(source, progress), rules, tally), nothing=lambda: _nothing(tally))
    analysis = analyse(
        folder / TABLE, settings["terms"],
        progress=(lambda done: progress("counting words", done, tally.rows)) if progress else None,
    )  # fmt: skip
    write_text(folder / KEYWORDS, keyword_table(analysis))
    write_text(folder / YEARS, _csv([("year", "documents"), *analysis.years]))
    figures = write_figures(folder, analysis)
    manifest = {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "source": facts,
        "settings": settings,
        "counts": tally.facts(),
        "analysis": {
            **{name: value for name, value in asdict(analysis).items() if name not in ("years", "frequent")},
            "frequent": {"kind": analysis.frequent.kind, "documents": analysis.frequent.distinct_documents,
                         "complete": analysis.frequent.complete},
            "years": [analysis.years[0][0], analysis.years[-1][0]] if analysis.years else [],
        },
        "rows_sha256": digest,
        "files_sha256": {name: _sha256(folder / name) for name in (TABLE, CSV, KEYWORDS, YEARS)},
        "versions": {"python": platform.python_version(), "engramscope": version("engramscope"),
                     "pyarrow": version("pyarrow")},
    }  # fmt: skip
    write_page(folder, manifest, analysis, figures)
    write_json(folder / MANIFEST, manifest)
    return Corpus(folder)


def _remove_products(folder: Path) -> None:
    """Everything but what was retrieved: a corpus is there in full or not at all."""
    for name in (MANIFEST, PAGE, TABLE, CSV, KEYWORDS, YEARS, *(f"{FIGURES}/{name}.svg" for name in MAKERS)):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        (folder / FIGURES).rmdir()


def keyword_table(analysis: Analysis) -> str:
    """`keywords.csv`: a row per term, then per keyword or phrase. Substring counts exist for terms only."""
    rows: list[Sequence[object]] = [
        ("kind", "text", "mentions", "documents", "substring_mentions", "substring_documents")
    ]
    rows += [
        ("term", one.term, one.mentions, one.documents, one.substring_mentions, one.substring_documents)
        for one in analysis.terms
    ]
    rows += [(analysis.frequent.kind, *entry, "", "") for entry in analysis.frequent.entries]
    return _csv(rows)


def _csv(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _passes(source: Source, progress: Progress | None) -> Articles:
    """A function that begins a new pass over the source, each with its own name on the progress bar."""
    names = iter(("finding revisions", "cleaning"))
    size = source.size()
    tell = progress or _silent

    def begin() -> Iterator[Article | Withdrawal]:
        name = next(names)
        return source.articles(lambda done: tell(name, min(done, size), size))

    return begin


def _silent(what: str, done: int, total: int) -> None:
    del what, done, total


def _nothing(tally: Tally) -> str:
    if not tally.read:
        return "the files hold no record. Nothing was written."
    return f"no abstract is left of {whole(tally.read)} records: {tally.losses()}. No corpus was written."


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The folder, locked; one that was made for nothing is removed."""
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(disk_sentence(folder, error)) from None
    lock = FolderLock(folder)
    try:
        remove_temporary_files(folder)
        yield
    finally:
        lock.release()
        if made:
            # only empty folders can be removed in this way
            for path in (folder / FOLDER, folder):
                with suppress(OSError):
                    path.rmdir()


def _retrieval_facts(got: Retrieval) -> dict[str, Any]:
    plan = got.plan
    whole = plan.searches[0]
    return {
        "kind": "pubmed", "query": plan.query, "endpoint": plan.endpoint, "searched": plan.day, "most": plan.most,
        "translation": whole.translation, "warnings": list(whole.warnings), "found": whole.count,
        "parts": len(plan.searches) - 1, "listed": len(plan.pmids), "fetched": got.fetched,
        "not_handed_out": list(plan.absent),
    }  # fmt: skip


def _file_facts(path: Path) -> dict[str, Any]:
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return file_digest(handle, "sha256").hexdigest()

"""The corpus of a whole study: fetched, read from a file, or a folder that is there already."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from typing import Any

from engramscope.clap.call import Call, relative
from engramscope.corpus import Corpus, fetch_pubmed, read_files
from engramscope.corpus.build import MANIFEST
from engramscope.corpus.eutils import NCBI, RetrievalError
from engramscope.corpus.keywords import analyse, checked_terms
from engramscope.corpus.table import TABLE
from engramscope.errors import InputError


def corpus_of(call: Call) -> Corpus:
    """The corpus, made unless it is finished already.

    Raises:
        InputError: the file is none, or nothing is found or left.
        RetrievalError: PubMed cannot be reached.
    """
    wanted, folder = call.study.corpus, call.folder / "corpus"
    if wanted.file and (call.path(wanted.file) / TABLE).is_file():
        given = call.path(wanted.file)
        if not (given / MANIFEST).is_file():
            raise InputError(
                f"The corpus {given} has no {MANIFEST}, so it is not finished. Make it again with `engramscope "
                f"corpus`, or give {given / TABLE} itself."
            )
        return Corpus(given)
    if (folder / MANIFEST).is_file():
        return Corpus(folder)
    if wanted.file:
        # what a killed run has left there; from a file all of it is made again
        shutil.rmtree(folder, ignore_errors=True)
        return read_files([call.path(wanted.file)], folder, terms=wanted.terms, progress=call.progress)
    try:
        return fetch_pubmed(
            wanted.query, folder, most=wanted.most, terms=wanted.terms, resume=folder.exists(), progress=call.progress,
            api_key=os.environ.get("NCBI_API_KEY", ""), email=wanted.email, endpoint=wanted.endpoint or NCBI,
        )  # fmt: skip
    except RetrievalError as error:
        hint = "Abstracts can also come from a file: --corpus FILE, or corpus.file in the study, with a new --out."
        raise RetrievalError(f"{error} {hint}") from None


def said_of(call: Call, corpus: Corpus) -> dict[str, Any]:
    """What the page says of the corpus; mentions are those of the study's terms, whatever the folder was made with."""
    manifest, terms = corpus.manifest, checked_terms(call.study.corpus.terms)
    rows = manifest["analysis"]["terms"]
    if tuple(row["term"] for row in rows) != terms:
        rows = [asdict(row) for row in analyse(corpus.folder / TABLE, terms).terms]
    return {"folder": relative(corpus.folder, call.folder), "manifest": manifest, "terms": rows}

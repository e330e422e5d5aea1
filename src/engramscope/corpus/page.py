"""The page of a corpus: where it comes from, what was dropped, what it is about."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engramscope.corpus.clean import DROPPED, NOTED
from engramscope.corpus.figures import MAKERS
from engramscope.corpus.keywords import Analysis
from engramscope.report.small_page import embedded_file, render_page
from engramscope.report.words import NARROW_SPACE, counted, whole
from engramscope.results.atomic import write_text

PAGE = "report.html"


def write_page(folder: Path, manifest: Mapping[str, Any], analysis: Analysis, figures: Mapping[str, Path]) -> Path:
    """Write `report.html` into a corpus folder.

    Raises:
        ResultsError: the disk refuses.
    """
    text = render_page(
        "engramscope.corpus",
        "corpus.html.j2",
        manifest=manifest,
        source=manifest["source"],
        title=_title(manifest["source"]),
        sentences=sentences(manifest),
        funnel=_funnel(manifest["counts"]),
        noted=[(NOTED[name], number) for name, number in manifest["counts"]["noted"].items() if number],
        analysis=analysis,
        whole=whole,
        figures={name: embedded_file(figures[name]) if name in figures else "" for name in MAKERS},
    )
    write_text(folder / PAGE, text)
    return folder / PAGE


def sentences(manifest: Mapping[str, Any]) -> list[str]:
    """What a person is told after the command, each sentence with its numbers."""
    counts, source, analysis = manifest["counts"], manifest["source"], manifest["analysis"]
    said = []
    if source["kind"] == "pubmed":
        listed, verb = source["listed"], "was" if source["listed"] == 1 else "were"
        found, came = counted(source["found"], "record"), whole(source["fetched"])
        said.append(f"PubMed found {found}; {whole(listed)} {verb} asked for and {came} came.")
        said += [f"PubMed's warning: {warning}." for warning in source["warnings"]]
    first, last = analysis["years"] or ("", "")
    years = f", of {first}" if first and first == last else f", from {first} to {last}" if first else ""
    said.append(
        f"{counted(counts['rows'], 'abstract')} ({counted(analysis['words'], 'word')}{years}) "
        f"{'is' if counts['rows'] == 1 else 'are'} left of {counted(counts['read'], 'record')}."
    )
    dropped = [f"{whole(number)} {DROPPED[why]}" for why, number in counts["dropped"].items() if number]
    said.append(f"Dropped: {'; '.join(dropped)}." if dropped else "Nothing was dropped.")
    if analysis["terms"]:
        terms = ", ".join(
            f"{one['term']} {whole(one['mentions'])} in {counted(one['documents'], 'abstract')}"
            for one in analysis["terms"]
        )
        said.append(f"Mentions as whole words: {terms}.")
    if analysis["frequent"]["kind"] == "phrase":
        said.append(
            "No record has keywords: the most frequent words and pairs of words of the abstracts stand in for them."
        )
    return said


def _title(source: Mapping[str, Any]) -> str:
    if source["kind"] == "pubmed":
        return str(source["query"])
    names = [str(file["name"]) for file in source["files"]]
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _funnel(counts: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    """(step, records, share of those read), from what was read to what is left."""
    read = counts["read"]
    rows = [("Records read", read), *((f"− {DROPPED[why]}", number) for why, number in counts["dropped"].items()),
            ("Abstracts in the corpus", counts["rows"])]  # fmt: skip
    return [(words, number, f"{100 * number / read:.2f}{NARROW_SPACE}%" if number else "–") for words, number in rows]

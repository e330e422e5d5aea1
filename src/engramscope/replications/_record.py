"""What a reproduction writes down: each value with its verdict, and the verdict on the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engramscope.replications import _verdict
from engramscope.replications._arms import Request
from engramscope.replications._effects import NotMeasuredError
from engramscope.replications._file import TAGS, Replication, ValueSection
from engramscope.replications._measures._base import Measure, Measured
from engramscope.replications._results import Results
from engramscope.replications._verdict import NOT_MEASURED, UNPUBLISHED, Judged, Overall, Verdict

SCHEMA_VERSION = 1


def described(replication: Replication, request: Request, remarks: Sequence[str]) -> dict[str, Any]:
    """What was asked for, of which table or figure."""
    file = replication.file
    return {
        "schema": SCHEMA_VERSION,
        "name": replication.name,
        "what": file.what,
        "source": file.source,
        "items": list(file.items),
        "published_model": file.model,
        "model": dict(request.model),
        "same_model": request.published,
        "quick": request.quick,
        "facts": [path.name for path in request.facts],
        "remarks": [*_model_remarks(replication, request), *remarks],
        "deviations": list(file.deviations),
        "notes": list(file.notes),
    }


def _model_remarks(replication: Replication, request: Request) -> list[str]:
    file, said = replication.file, []
    if file.unavailable and not request.published:
        said.append(f"{file.unavailable} Measured on {request.model['name']} instead.")
    elif not request.published:
        said.append(
            f"The values were published for {file.model}; on {request.model['name']} they are measured, not compared."
        )
    if file.facts is not None and not request.facts and not (file.given and request.published):
        said.append(
            f"The published study used {file.facts.what}; here the facts are those of the bundled encyclopaedia."
        )
    if request.quick:
        said.append("Quick: few pairs, draws and resamples. It shows that everything runs; it is no replication.")
    return said


def judged(replication: Replication, results: Results) -> dict[str, Any]:
    """Measure and judge every value, and the whole."""
    rows: list[dict[str, Any]] = []
    verdicts: list[Judged] = []
    for value, measure in zip(replication.file.value, replication.measures, strict=True):
        measured, verdict = judge_value(measure, results)
        rows.append(_row(value, measure, measured, verdict))
        verdicts.append(Judged(verdict, value.counts))
    rule = replication.file.verdict
    whole: Overall = _verdict.overall(verdicts, rule.exact)
    said = {"outcome": whole.outcome, "why": whole.why, "rule": rule.rule, "tally": dict(whole.tally)}
    return {"values": rows, "verdict": said}


def judge_value(measure: Measure[Any], results: Results) -> tuple[Measured | None, Verdict]:
    """Measure one value, and compare it if it was published for this model."""
    try:
        measured = measure.measure(results)
    except NotMeasuredError as error:
        return None, Verdict(NOT_MEASURED, str(error))
    if measure.of_model and not results.published:
        return measured, Verdict(UNPUBLISHED)
    if not measure.published():
        return measured, Verdict(UNPUBLISHED, "the source gives no number")
    return measured, measure.judge(measured)


def _row(value: ValueSection, measure: Measure[Any], measured: Measured | None, verdict: Verdict) -> dict[str, Any]:
    return {
        "name": value.name,
        "measure": value.measure,
        "where": value.where,
        "tag": value.tag,
        "tag_words": TAGS[value.tag],
        "counts": value.counts,
        "published": measure.published(),
        "options": value.options,
        "measured": None if measured is None else measured.value,
        "shown": "" if measured is None else measured.text,
        "detail": {} if measured is None else dict(measured.detail),
        "verdict": verdict.outcome,
        "why": verdict.why,
        "exact": verdict.exact,
    }


def verdict_sentence(record: Mapping[str, Any]) -> str:
    """The verdict on the whole, in one sentence."""
    verdict = record["verdict"]
    items = ", ".join(record["items"]) + (" (quick)" if record["quick"] else "")
    why = f": {verdict['why']}" if verdict["why"] else ""
    if verdict["outcome"] == UNPUBLISHED:
        return f"{items}: measured on {record['model']['name']}; {UNPUBLISHED}."
    words = {"reproduced": "reproduced", "differs": "not reproduced", "not measured": "not decided"}
    return f"{items}: {words[verdict['outcome']]}{why}."


def tally_sentence(record: Mapping[str, Any]) -> str:
    """How many values there are of each outcome."""
    tally = {name: count for name, count in record["verdict"]["tally"].items() if count}
    return f"{len(record['values'])} values: " + ", ".join(f"{count} {name}" for name, count in tally.items()) + "."

"""What a table of editors says, from its outcomes: estimates, differences, damage, times, samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from engramscope.editing.outcome import Outcome
from engramscope.evaluate.case import CaseResult
from engramscope.evaluate.evaluate import knowledge
from engramscope.evaluate.health import HealthLimits
from engramscope.evaluate.measures import HARMONIC, TABLE4
from engramscope.evaluate.published import SOURCE, published_for
from engramscope.evaluate.summary import RESAMPLES, differences, measures_of, summarise
from engramscope.records.record import Record

#: the model without an edit, as in the published table
UNEDITED = "none"
#: SHA-256 of the published counterfact.json
COUNTERFACT_SHA256 = "d017056125178a13728594e66a801357a8db9ed7973a7425554bb4271de9fc6f"
#: records whose texts are shown, and texts of each
_SAMPLES, _TEXTS = 4, 1

Progress = Callable[[str, int, int], None]


def table_findings(
    outcomes: Mapping[str, Sequence[Outcome]], records: Sequence[Record], about: Mapping[str, Any], *, seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What a table says.

    Args:
        outcomes: label -> its outcomes, one for each record, in their order; "none" is the model without an edit.
        records: the records.
        about: what is known of the study; goes in as it is, and its model's name decides which published figures
            stand beside ours.
        seed: of the bootstrap. Records about one subject are drawn together.
        progress: called with (what, done, total).

    Returns:
        JSON values, but for numbers that are not finite.
    """
    results = {label: [one.case for one in found if one.case is not None] for label, found in outcomes.items()}
    clusters = {record.id: record.fact.subject for record in records}
    main = main_measures(results)
    if progress:
        progress("statistics", 0, len(main) + 1)
    estimates = summarise(results, clusters=clusters, seed=seed, resamples=RESAMPLES)
    compared: list[dict[str, Any]] = []
    editors = {label: found for label, found in results.items() if label != UNEDITED}
    for number, name in enumerate(main):
        if progress:
            progress("statistics", number + 1, len(main) + 1)
        if len(editors) > 1:
            compared += [asdict(one) for one in differences(editors, name, clusters, seed=seed, resamples=RESAMPLES)]
    known = knowledge(results[UNEDITED]) if UNEDITED in results else None
    if progress:
        progress("statistics", len(main) + 1, len(main) + 1)
    return {
        **about,
        "n": len(records), "subjects": len(set(clusters.values())), "labels": list(outcomes), "measures": main,
        "estimates": [asdict(one) for one in estimates], "differences": compared,
        "knowledge": None if known is None else {
            "known": len(known.known), "unknown": len(known.unknown), "unasked": len(known.unasked),
            "sentence": known.sentence,
        },
        "editors": {label: editor_facts(found) for label, found in outcomes.items()},
        "published": _published(about), "samples": _samples(outcomes, records),
    }  # fmt: skip


def main_measures(results: Mapping[str, Sequence[CaseResult]]) -> list[str]:
    """The columns of the table: those of the published one that there are, or those of zsRE."""
    there = measures_of(results)
    zsre = [name for name in there if name.startswith("zsRE")]
    # without the old answers the nine cannot be had, but whether the new one is given can
    return zsre or [name for name in ("S", *TABLE4) if name in there] or there


def editor_facts(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Counts, damage and times of one editor's outcomes."""
    failed = [one for one in outcomes if one.failed]
    done = [one for one in outcomes if not one.failed]
    healths = [one.health for one in done if one.health is not None]
    changes = [
        max((value for value in health["norms"].values() if value is not None), default=0.0) for health in healths
    ]
    ratios = [ratio for health in healths if (ratio := _ratio(health)) is not None]
    notes = dict.fromkeys(note for one in done for note in one.notes)
    return {
        "edits": len(done),
        "failed": [{"record": one.record, "why": one.status.removeprefix("failed: ")} for one in failed],
        "collapsed": [one.record for one in done if _collapsed(one)],
        "damaged": [one.record for one in done if not _collapsed(one) and _damaged(one)],
        "warned": sum(bool(health["warnings"]) for health in healths),
        "large": sum(_large(health) for health in healths),
        "misaligned": sum(_misaligned(health) for health in healths),
        "change": median(changes) if changes else None,
        "perplexity_ratio": median(ratios) if ratios else None,
        "worst_perplexity_ratio": max(ratios) if ratios else None,
        "edit_s": median(one.edit_s for one in done) if done else None,
        "measure_s": median(one.measure_s for one in done) if done else None,
        "notes": list(notes)[:20],
    }  # fmt: skip


def _collapsed(one: Outcome) -> bool:
    """The model's logits were not numbers, on a prompt of the record or on the held-out texts."""
    health = one.health
    lost = health is not None and health["perplexity_before"] is not None and health["perplexity_after"] is None
    return lost or bool(one.case and one.case.collapsed)


def _damaged(one: Outcome) -> bool:
    """The perplexity of held-out texts rose beyond the limit."""
    ratio = _ratio(one.health) if one.health is not None else None
    return ratio is not None and ratio > HealthLimits().perplexity


def _ratio(health: Mapping[str, Any]) -> float | None:
    before, after = health["perplexity_before"], health["perplexity_after"]
    return after / before if before is not None and after is not None else None


def _large(health: Mapping[str, Any]) -> bool:
    """The edit is larger than the limit allows, or not a number."""
    return any(not (value is not None and value <= HealthLimits().change) for value in health["norms"].values())


def _misaligned(health: Mapping[str, Any]) -> bool:
    """The key of the bare prompt hardly points along the averaged one."""
    return any(value is None or abs(value) < HealthLimits().alignment for value in health["alignments"])


def _published(about: Mapping[str, Any]) -> dict[str, Any] | None:
    """The published figures of this model; whether the records are theirs, too."""
    table = published_for(str(about["model"]["name"]))
    if table is None:
        return None
    editors = {
        label: {name: {"value": figure.value, "half_width": figure.half_width} for name, figure in row.items()}
        for label, row in table.editors.items()
    }
    same = about["protocol"]["records"]["file_sha256"] == COUNTERFACT_SHA256
    return {"source": SOURCE, "title": table.title, "n": table.n, "editors": editors, "same_records": same}


def _samples(outcomes: Mapping[str, Sequence[Outcome]], records: Sequence[Record]) -> list[dict[str, Any]]:
    """Texts of the first records that have some, before and after each editor."""
    found: list[dict[str, Any]] = []
    for index, record in enumerate(records):
        if len(found) == _SAMPLES or not record.generation:
            continue
        texts = {
            label: list(one.case.texts[:_TEXTS])
            for label, those in outcomes.items()
            if (one := those[index]).case is not None and one.case.texts
        }
        if texts:
            fact = record.fact
            found.append({
                "record": record.id, "prompt": fact.prompt, "subject": fact.subject, "target": fact.target,
                "true": fact.true, "begin": record.generation[0], "texts": texts,
            })  # fmt: skip
    return found


def estimate_of(findings: Mapping[str, Any], label: str, measure: str) -> Mapping[str, Any] | None:
    """One estimate of a table; None where the editor does not have it."""
    for one in findings["estimates"]:
        if one["editor"] == label and one["measure"] == measure:
            return one
    return None


def score_of(measures: Sequence[str]) -> str:
    """The score of scores among measures, or the first of them where there is none."""
    return next((name for name in measures if name in HARMONIC), measures[0])

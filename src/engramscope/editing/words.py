"""What a table of editors says, in words and in lines for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engramscope.edit.names import editor_words
from engramscope.editing.findings import UNEDITED, estimate_of, score_of
from engramscope.evaluate.measures import HARMONIC, MEASURES
from engramscope.report.words import DASH, MINUS, missing

#: differences whose corrected p is below this are named
LEVEL = 0.05
#: subjects below which a bootstrap is said to be rough
_FEW = 20
_LABELS = {UNEDITED: "no edit", "model": "model", "edited": "edited model"}


def label_words(label: str) -> str:
    """A row's label as the literature writes it."""
    return _LABELS.get(label) or editor_words(label)


def published_row(findings: Mapping[str, Any], label: str) -> Mapping[str, Any]:
    """The published figures of an editor by measure; empty where there are none."""
    editors = (findings["published"] or {}).get("editors", {})
    return editors.get(label.replace("-", "_"), {})


def sentences(findings: Mapping[str, Any]) -> list[str]:
    """What the table says, each sentence with its numbers."""
    labels = [label for label in findings["labels"] if label != UNEDITED]
    score = score_of(findings["measures"])
    last = _health(findings) if findings["kind"] == "evaluation" else _damage(findings, labels)
    said = [_best(findings, labels, score), _baseline(findings, score), last]
    return [sentence for sentence in said if sentence]


def remarks(findings: Mapping[str, Any]) -> list[str]:
    """What must be known beside the table: facts that were not known, editors left out, what cannot be compared."""
    said = [findings["knowledge"]["sentence"]] if findings["knowledge"] else []
    if 1 < findings["subjects"] < _FEW:
        said.append(
            f"{findings['subjects']} subjects are few: intervals and p values from a bootstrap over so few are rough, "
            "and rather too narrow than too wide."
        )
    if findings["n"] < findings["records_available"]:
        was = "was" if findings["n"] == 1 else "were"
        said.append(f"The first {findings['n']:,} of {findings['records_available']:,} records {was} used.")
    said += list(findings["records_notes"])
    if findings["subjects"] < findings["n"]:
        said.append(
            f"The {findings['n']:,} records are about {findings['subjects']:,} subjects. The better intervals draw the "
            "records of a subject together; the published ones take records for independent."
        )
    said += [f"{label_words(one['label'])} takes no part. {one['why']}" for one in findings["skipped"]]
    said += _failures(findings)
    references = findings["protocol"]["references"]
    if "RS" in findings["measures"] and references is not None:
        said.append(references["note"])
    if not findings["texts"]:
        said.append("Without held-out texts the perplexity of the edited models was not measured; give some (--texts).")
    published = findings["published"]
    if published is not None:
        same = "and so are the records" if published["same_records"] else "but the records are not those of that table"
        said.append(f"{published['title']} is a model of {published['source']}, {same}; its figures stand beside ours.")
    return said


def _failures(findings: Mapping[str, Any]) -> list[str]:
    """Records that nobody could be asked, and edits that could not be computed."""
    said, unasked = [], set[str]()
    for label in sorted(findings["editors"], key=lambda name: name != UNEDITED):
        failed = [one for one in findings["editors"][label]["failed"] if one["record"] not in unasked]
        if not failed:
            continue
        counted, why = f"{len(failed)} of {findings['n']}", failed[0]["why"].rstrip(".")
        if label == UNEDITED:
            unasked = {one["record"] for one in failed}
            said.append(f"{counted} records cannot be asked and are in no mean ({why}).")
        else:
            said.append(
                f"{label_words(label)}: {counted} edits could not be computed and are not in its means ({why})."
            )
    return said


def cell(estimate: Mapping[str, Any] | None) -> str:
    """An estimate as in published tables: "92.1 (1.2)"; S has no interval there."""
    if estimate is None or missing(estimate["mean"]):
        return DASH
    decimals = _decimals(estimate)
    half = None if missing(estimate["low"]) else (estimate["high"] - estimate["low"]) / 2
    return plain(estimate["mean"], decimals) + ("" if half is None else f" ({plain(half, decimals)})")


def better(estimate: Mapping[str, Any] | None) -> str:
    """The better interval: "89.0 to 94.3"; empty where there is none."""
    if estimate is None or missing(estimate["better_low"]) or missing(estimate["better_high"]):
        return ""
    decimals = _decimals(estimate)
    return f"{plain(estimate['better_low'], decimals)} to {plain(estimate['better_high'], decimals)}"


def _decimals(estimate: Mapping[str, Any]) -> int:
    """Values that are not times 100 are small and need more digits."""
    measure = MEASURES.get(estimate.get("measure", ""))
    return 3 if measure is not None and measure.scale == 1 else 1


def plain(value: object, decimals: int = 1) -> str:
    """A number with one decimal, as the published table has it, or with more of them."""
    if missing(value):
        return DASH
    x = float(value)  # type: ignore[arg-type]
    if abs(x) == float("inf"):
        return f"{MINUS if x < 0 else ''}∞"
    text = f"{x:.{decimals}f}"
    return (text if float(text) else text.lstrip("-")).replace("-", MINUS)


def measure_title(name: str) -> str:
    """A measure with what it is called in words: "ES, efficacy score"."""
    if name in HARMONIC:
        return f"{name}, harmonic mean of {', '.join(HARMONIC[name][:-1])} and {HARMONIC[name][-1]}"
    title = MEASURES[name].title
    return name if title == name else f"{name}, {title}"


def _best(findings: Mapping[str, Any], labels: Sequence[str], score: str) -> str:
    ranked = sorted(
        ((one["mean"], label) for label in labels if (one := estimate_of(findings, label, score)) is not None),
        reverse=True,
    )
    if not ranked:
        return ""
    mean, first = ranked[0]
    interval = better(estimate_of(findings, first, score))
    shown = f"{plain(mean)}" + (f" (95 % interval {interval})" if interval else "")
    if len(ranked) == 1:
        name = label_words(first)
        whose = f"The {name}" if first in ("model", "edited") else name
        return f"{whose} has {score} = {shown} on {_count(findings['n'], 'record')}."
    behind, level, before = _sorted_out(findings, first, score)
    among = f"Of {len(ranked)} editors on {findings['n']:,} records"
    said = f"{among}, {label_words(first)} has the highest {score}: {shown}."
    if behind:
        said += f" It is ahead of {listed(behind)} beyond chance (corrected for all comparisons)."
    if before:
        shared = _count(next(one["n"] for one in findings["differences"] if one["measure"] == score), "record")
        said += (
            f" On the {shared} that all editors have, {listed(before)} {'is' if len(before) == 1 else 'are'} ahead of "
            "it beyond chance."
        )
    if level:
        said += f" It cannot be told from {listed(level)} on these records."
    return said


def _sorted_out(findings: Mapping[str, Any], first: str, score: str) -> tuple[list[str], list[str], list[str]]:
    """Editors that the first one is ahead of, those that it cannot be told from, and those that are ahead of it.

    The differences are on the records that all editors have, so where edits failed, they may turn a ranking round.
    """
    behind, level, before = [], [], []
    for one in findings["differences"]:
        # no p: there are fewer than two subjects, so nothing can be said
        if one["measure"] == score and first in (one["first"], one["second"]) and not missing(one["p_max_t"]):
            other = one["second"] if one["first"] == first else one["first"]
            ahead = (one["difference"] > 0) == (one["first"] == first)
            group = level if one["p_max_t"] >= LEVEL else behind if ahead else before
            group.append(label_words(other))
    return behind, level, before


def _baseline(findings: Mapping[str, Any], score: str) -> str:
    one = estimate_of(findings, UNEDITED, score)
    return "" if one is None else f"Without an edit the model has {score} = {plain(one['mean'])}."


def _damage(findings: Mapping[str, Any], labels: Sequence[str]) -> str:
    hurt = []
    for label in labels:
        facts = findings["editors"][label]
        parts = [f"{len(facts[key])} {key}" for key in ("collapsed", "damaged") if facts[key]]
        if parts:
            hurt.append(f"{label_words(label)} ({' and '.join(parts)} of {facts['edits']})")
    if not findings["texts"]:
        return "" if not hurt else f"Edits after which the model's logits are not numbers: {listed(hurt)}."
    if not hurt:
        return "No edit collapsed the model or doubled the perplexity of held-out texts."
    return f"Edits that collapsed the model or more than doubled the perplexity of held-out texts: {listed(hurt)}."


def _health(findings: Mapping[str, Any]) -> str:
    """Perplexity before and after, and what is to be feared of an edit."""
    before, after = findings["perplexity"], findings["perplexity_after"]
    said = []
    if findings["texts"]:
        shown = "is not a number" if after is None else f"is {after:.4g}"
        said.append(
            f"The perplexity of held-out texts {shown}" + ("." if before is None else f", {before:.4g} before.")
        )
    return " ".join([*said, *(findings["health"] or {}).get("warnings", ())])


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """Names with commas between them and "and" before the last."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def table_lines(findings: Mapping[str, Any]) -> list[list[str]]:
    """The table for a terminal: a head, then for each editor a line of values and one of better intervals."""
    measures = findings["measures"]
    lines = [["", *measures]]
    for label in findings["labels"]:
        found = [estimate_of(findings, label, name) for name in measures]
        lines.append([label_words(label), *(cell(one) for one in found)])
        lines.append(["", *(better(one).replace(" to ", "…") for one in found)])
        if published := published_row(findings, label):
            lines.append(["  published", *(figure(published.get(name)) for name in measures)])
    return lines


def figure(published: Mapping[str, Any] | None) -> str:
    """A published figure as it stands in its table."""
    if published is None:
        return DASH
    half = published["half_width"]
    return plain(published["value"]) + ("" if half is None else f" ({plain(half)})")

"""The page of the comparison: one HTML file with tables, the head maps of all arms, and links to their reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engramscope.report.small_page import embedded_file, render_page
from engramscope.report.words import bare_p, metric_words, number, percent
from engramscope.results.atomic import write_text

_RULES = {"two_sd": "2 SD (published)", "max_t": "max-T, corrected", "bh": "Benjamini–Hochberg, 5 %"}
#: heads of a list that are shown; all are in practices.json
_SHOWN = 8
_CORRUPTIONS = {"str": "other tokens", "gaussian": "Gaussian noise"}


def write_page(folder: Path, found: Mapping[str, Any]) -> Path:
    """Write `practices.html` into the folder of a comparison.

    Args:
        folder: holds the arms' results folders.
        found: what stands in `practices.json`.

    Raises:
        ResultsError: the disk refuses.
    """
    text = render_page(
        "engramscope.practices",
        "practices.html.j2",
        found=found,
        sentences=sentences(found),
        maps=_maps(folder, found),
        detections=_detection_rows(found),
        rules=_RULES,
        agreement=[_agreement_row(row) for row in found["agreement"]["two_sd"]],
        windows=_window_rows(found),
        variants=[arm["variant"] for arm in found["arms"] if arm["part"] == "heads" and arm["corruption"] == "str"],
        attention=_attention_rows(found["attention"]),
    )
    path = folder / "practices.html"
    write_text(path, text)
    return path


def sentences(found: Mapping[str, Any]) -> list[str]:
    """What the comparison says, each sentence with its numbers; nothing where there is nothing to say."""
    said = [_agreement_sentence(found), _blind_sentence(found), _window_sentence(found), _attention_sentence(found)]
    return [sentence for sentence in said if sentence]


def _first(found: Mapping[str, Any]) -> str:
    return str(next(arm["variant"] for arm in found["arms"]))


def _agreement_sentence(found: Mapping[str, Any]) -> str:
    variant = _first(found)
    names = (f"{variant} str logit_diff", f"{variant} gaussian logit_diff")
    row = next((one for one in found["agreement"]["two_sd"] if (one["first"], one["second"]) == names), None)
    if row is None or row["jaccard"] is None:
        return "By the logit difference neither corruption detects a head by the 2-SD rule."
    return (
        f"By the logit difference the heads detected under token replacement and under noise agree to "
        f"{percent(row['jaccard'])} (Jaccard index; chance {percent(row['chance'])}, p = {bare_p(row['p'])})."
    )


def _blind_sentence(found: Mapping[str, Any]) -> str:
    parts = []
    for arm in found["arms"]:
        heads = found["blind"].get(arm["folder"])
        if heads:
            names = ", ".join(one["head"] for one in heads[:6])
            parts.append(f"{names} ({arm['variant']}, {_CORRUPTIONS[arm['corruption']]})")
    if not parts:
        return "No head that is negative by the logit difference is hidden by the probability."
    return f"Negative heads that the probability does not show: {'; '.join(parts)}."


def _window_sentence(found: Mapping[str, Any]) -> str:
    rows = [row for rows in found["windows"].values() for row in rows if row["window"] > 1 and row["ratio"] is not None]
    if not rows:
        return ""
    most = max(rows, key=lambda row: row["ratio"])
    return (
        f"Windows against the sum of their single layers: the peak ratio is at most {number(most['ratio'])} "
        f"({most['window']} layers, {metric_words(most['metric'])}, at {most['position']})."
    )


def _attention_sentence(found: Mapping[str, Any]) -> str:
    attention = found["attention"]
    if not attention["rows"]:
        return ""
    rows = [row for row in attention["rows"] if row["corruption"] == "str" and row["target"] != "rest"]
    clean = [row for row in rows if row["run"] == "clean"]
    if not clean:
        return ""
    top = max(clean, key=lambda row: row["mean"])
    corrupted = next((row for row in rows if row["run"] == "corrupted" and row["target"] == top["target"]), None)
    then = f" and {percent(corrupted['mean'])} in the corrupted one" if corrupted else ""
    heads = ", ".join(attention["heads"])
    return (
        f"From the last position the heads {heads} look most at {top['target']}: {percent(top['mean'])} of their "
        f"attention in the clean run{then}."
    )


def _maps(folder: Path, found: Mapping[str, Any]) -> list[dict[str, str]]:
    """The head maps of all arms, as data URIs: the page is one file."""
    made = []
    for arm in found["arms"]:
        file = folder / arm["folder"] / "figures" / "heads-denoise-logit-diff.svg"
        if arm["part"] == "heads" and file.is_file():
            source = embedded_file(file)
            title = f"{arm['variant']}, {_CORRUPTIONS[arm['corruption']]}"
            made.append({"title": title, "source": source, "report": f"{arm['folder']}/report.html"})
    return made


def _detection_rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per variant, corruption and metric; a column per rule."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for one in found["detections"]:
        key = (one["variant"], one["corruption"], one["metric"])
        row = rows.setdefault(key, {"variant": key[0], "corruption": _CORRUPTIONS[key[1]], "metric": key[2]})
        lists = {name: _shortened(one[name]) for name in ("positive", "negative")}
        row[one["rule"]] = {**lists, "tested": one["tested"]}
    return list(rows.values())


def _shortened(heads: Sequence[str]) -> list[str]:
    """The strongest heads of a list, and how many more there are."""
    rest = len(heads) - _SHOWN
    return list(heads) if rest <= 2 else [*heads[:_SHOWN], f"and {rest} more"]


def _agreement_row(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "first": str(row["first"]),
        "second": str(row["second"]),
        "jaccard": percent(row["jaccard"]),
        "chance": percent(row["chance"]),
        "p": bare_p(row["p"]),
        "common": str(row["common"]),
    }


def _window_rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {**row, "corruption": _CORRUPTIONS[corruption]} for corruption, rows in found["windows"].items() for row in rows
    ]


def _attention_rows(attention: Mapping[str, Any]) -> dict[str, Any]:
    """Rows: corruption and run; columns: targets."""
    rows: Sequence[Mapping[str, Any]] = attention["rows"]
    targets = list(dict.fromkeys(str(row["target"]) for row in rows))
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        if row["run"] == "clean" and row["corruption"] != "str":
            continue  # the clean run is the same under both
        kind = "" if row["run"] == "clean" else _CORRUPTIONS[row["corruption"]]
        line = lines.setdefault((kind, str(row["run"])), {})
        line[str(row["target"])] = f"{number(row['mean'])} ± {number(row['sd'])}"
    return {"heads": attention["heads"], "restored": attention["restored"], "targets": targets,
            "lines": [(kind, run, [line.get(target, "") for target in targets])
                      for (kind, run), line in lines.items()]}  # fmt: skip

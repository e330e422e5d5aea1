"""Findings as sentences: what this study supports, in numbers, and no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import pandas as pd

from engramscope.report.load import Study, records, section
from engramscope.report.tables import audit_items, differs
from engramscope.report.ways import way_words
from engramscope.report.words import (
    amount,
    cell_name,
    cell_words,
    counted,
    interval,
    joined,
    metric_words,
    missing,
    number,
    p_value,
    percent,
    whole,
)
from engramscope.results.effect_scale import higher_is_better, no_effect

#: sites through which much or all of the computation runs: their recovery is high wherever information passes
_STREAM = frozenset({"resid_pre", "resid_mid", "resid_post", "embed", "final_norm", "logits"})
_CORRUPTIONS: Mapping[str, str] = {
    "str": "other tokens in the prompt",
    "gaussian": "Gaussian noise on the token embeddings",
    "answer": "the wrong answer appended in place of the correct one",
    "zero": "the value set to zero (an ablation)",
    "mean": "the value set to its mean (an ablation)",
    "base_model": "the same prompts in the model before training",
    "resample": "the value taken from another prompt (an ablation)",
}


@dataclass(frozen=True)
class Answer:
    """The answer of a study.

    Attributes:
        warning: what undermines the claim and so comes first; empty where nothing does.
        lead: two or three sentences: peak, number detected, contrast.
        aside: what is a cut and therefore no finding; empty where there is none.
    """

    warning: str
    lead: tuple[str, ...]
    aside: str


def answer(study: Study) -> Answer:
    """The answer in plain sentences, from the findings of the manifest and the summary."""
    lead = [_gap_sentence(study), _peak_sentence(study), _count_sentence(study), _contrast_sentence(study)]
    return Answer(_warning(study), tuple(sentence for sentence in lead if sentence), _cut_sentence(study))


def question(study: Study) -> str:
    """What was asked, in one line: model, pairs, corruption, sweeps."""
    resolved = section(study.manifest, "study")
    model = model_name(study)
    source = section(resolved, "pairs")
    origin = source.get("task") or PurePath(str(source.get("file") or "")).name
    corruption = section(study.manifest, "corruption").get("method") or section(resolved, "corruption").get("method")
    how = _CORRUPTIONS.get(str(corruption), str(corruption)) if corruption else "as given"
    pairs = counted(len(study.pairs), "pair") + (f" of {origin}" if origin else "") + pooled_words(study)
    sweeps = joined([_sweep_words(study, sweep) for sweep in dict.fromkeys(study.summary["sweep"])], 6)
    patched = sweeps or "nothing"
    if corruption == "base_model":
        base = PurePath(str(section(study.manifest, "base_model").get("name") or "the model before training")).name
        return (
            f"Which parts of {model} hold what training changed? Asked with {pairs}, each in {model} (clean) and in "
            f"{base} (corrupted); put in place: {patched}."
        )
    return f"Which parts of {model} carry the answer? Asked with {pairs}; corruption: {how}; patched: {patched}."


def pooled_words(study: Study) -> str:
    """How many of the pairs enter recovery, ", 5 of them in the recovery"; empty where all do."""
    if len(study.used) == len(study.pairs):
        return ""
    shares = "recovery" in set(study.summary["estimate_kind"])
    return f", {whole(len(study.used))} of them {'in the recovery' if shares else 'used'}"


def model_name(study: Study) -> str:
    """The name of the model; of a folder its last part (the whole path stands in the provenance)."""
    stored = section(study.manifest, "model")
    name = str(stored.get("name") or section(section(study.manifest, "study"), "model").get("name") or "the model")
    return PurePath(name).name if stored.get("source") == "folder" and PurePath(name).name else name


def _sweep_words(study: Study, sweep: str) -> str:
    rows = study.summary.loc[(study.summary["sweep"] == sweep).to_numpy()]
    site = str(rows["site"].iloc[0])
    axes = [name for name in ("layer", "head", "position") if rows[name].nunique() > 1]
    if "position" not in axes and rows["position_role"].nunique() > 1:
        axes.append("role")
    way = way_words(study, sweep).replace(", ", " ", 1)
    return (f"{site} by {' × '.join(axes)}" if axes else site) + way


def _warning(study: Study) -> str:
    manifest, parts = study.manifest, []
    if manifest.get("status", "complete") != "complete":
        parts.append(f"This study is {manifest.get('status')}, not complete; what follows is provisional.")
    failed = [str(check.get("name")) for check in records(manifest, "self_checks") if check.get("passed") is False]
    if failed:
        parts.append(f"The self-check {joined(failed)} failed, so no number below can be trusted.")
    if (parity := parity_failed(study)) is not None:
        parts.append(parity)
    for severity, noun in (("error", "error"), ("warning", "warning")):
        found = [item for item in audit_items(study) if item["severity"] == severity]
        if found:
            titles = joined(list(dict.fromkeys(item["title"] for item in found)), 3)
            tail = (
                "the claim below is not supported as it stands"
                if severity == "error"
                else "read what follows with it in mind"
            )
            parts.append(f"The audit found {counted(len(found), noun)} ({titles}); {tail}.")
    return " ".join(parts)


def parity_failed(study: Study) -> str | None:
    """A sentence where the recomputation with the reference executor disagrees, else None."""
    parity = section(study.manifest, "parity")
    difference, tolerance = parity.get("max_abs_diff"), parity.get("tolerance")
    if missing(difference) or missing(tolerance) or float(difference) <= float(tolerance):  # type: ignore[arg-type]
        return None
    return (
        f"The recomputed cells differ from the stored ones by {number(difference)} (tolerance {number(tolerance)}), "
        "so no number below can be trusted."
    )


def _headline(study: Study) -> Mapping[str, Any] | None:
    """The peak that the text speaks of: first metric, denoising before noising, components before the stream."""
    metric = study.metrics[0] if study.metrics else ""
    peaks = [peak for peak in records(study.findings, "peaks") if peak.get("metric", metric) == metric]
    peaks = [peak for peak in peaks if not missing(peak.get("estimate")) and not _is_cut(study, peak)]

    def rank(peak: Mapping[str, Any]) -> tuple[bool, bool, float]:
        # by the selection half: choosing among sweeps by the confirmation half would flatter its numbers again
        chosen_by = next((peak[key] for key in ("selection_estimate", "estimate") if not missing(peak.get(key))), 0.0)
        size = abs(float(chosen_by) - _nothing(peak))
        if not missing(peak.get("selection_effect")):
            size = abs(float(peak["selection_effect"]))
        return (peak.get("direction") == "noise", str(_cell_of(peak).get("site")) in _STREAM, -size)

    return min(peaks, key=rank, default=None)


def _cell_of(peak: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**peak, **section(peak, "cell")}


def _is_cut(study: Study, peak: Mapping[str, Any]) -> bool:
    rows = study.summary
    mask = (rows["metric"] == peak.get("metric")) & rows["cut"]
    for name, value in _cell_of(peak).items():
        if name in ("sweep", "direction", "site", "layer", "head", "position", "position_role"):
            mask &= rows[name].isna() if missing(value) else rows[name].eq(value).fillna(False).astype(bool)
    return bool(mask.any())


def _nothing(peak: Mapping[str, Any]) -> float:
    return no_effect(str(peak.get("estimate_kind")), str(peak.get("direction")))


def confirmed(peak: Mapping[str, Any], confidence: float) -> bool:
    """Whether the other half of the pairs confirms a peak: interval without the value of no effect, p small enough.

    Never on fewer than two groups: neither in the test nor in the recovery.
    """
    low, high, p = peak.get("low"), peak.get("high"), peak.get("p_adjusted", peak.get("p"))
    if missing(low) or missing(high) or _few_pooled(peak):
        return False
    outside = not float(low) <= _nothing(peak) <= float(high)  # type: ignore[arg-type]
    return outside and not missing(p) and float(p) <= 1.0 - confidence + 1e-12  # type: ignore[arg-type]


def _few_pooled(peak: Mapping[str, Any]) -> bool:
    clusters = peak.get("n_clusters_pooled")
    return not missing(clusters) and int(clusters) < 2  # type: ignore[arg-type]


def _gap_sentence(study: Study) -> str:
    """Said first where recovery is of a chosen few: over all pairs there is no gap to recover."""
    metric = study.metrics[0] if study.metrics else ""
    row = next((row for row in records(study.findings, "gaps") if row.get("metric") == metric), {})
    gap, up = row.get("gap"), row.get("higher_is_better")
    up = higher_is_better(metric) if missing(up) else bool(up)  # older folders do not say
    if missing(gap) or (float(gap) > 0 if up else float(gap) < 0):  # type: ignore[arg-type]
        return ""
    return (
        f"Over all pairs the clean run is no better than the corrupted one in {metric_words(metric)} (mean gap "
        f"{number(gap)}), so there is nothing to recover; recoveries below are of the pairs that happen to have a gap, "
        "and p is of all."
    )


def _peak_sentence(study: Study) -> str:
    peak = _headline(study)
    if peak is None:
        return "" if len(_tested(study)) else "No cell could be tested, so there is nothing to report."
    cell, metric = _cell_of(peak), str(peak.get("metric", ""))
    direction, kind = str(peak.get("direction", "denoise")), str(peak.get("estimate_kind", "recovery"))
    size = amount(peak["estimate"], kind, metric, direction)
    level = percent(study.confidence)
    known = not (missing(peak.get("low")) or missing(peak.get("high")))
    ends = interval(peak.get("low"), peak.get("high"), kind, direction)
    sure = f"{f'{level} interval {ends}' if known else 'no interval'}, {_p(peak)}"
    numbers = "; ".join(filter(None, (sure, _pairs_behind(peak))))
    chosen = not (missing(peak.get("selection_effect")) and missing(peak.get("selection_estimate")))
    halves = " on pairs that were not used to choose it" if chosen else ""
    where = cell_words(cell) + way_words(study, str(peak.get("sweep")))
    where += f" ({peak['note']})" if peak.get("note") else ""
    of = f"{size} of the clean–corrupted gap in {metric_words(metric)}" if kind == "recovery" else size
    verb = _verb(kind, direction, metric)
    if not confirmed(peak, study.confidence):
        among = f"the peak of the sweep {peak.get('sweep')}, {where},"
        return f"No peak is confirmed: {among} {verb} {of}{halves} ({numbers}){_why_not(peak, study.confidence)}."
    return f"Patching {where} {verb} {of}{halves} ({numbers})."


def _pairs_behind(peak: Mapping[str, Any]) -> str:
    """`12 pairs in 6 groups`; where the recovery has fewer than the test, both."""

    def words(pairs: object, clusters: object) -> str:
        groups = "" if missing(clusters) else f" in {counted(int(clusters), 'group')}"  # type: ignore[call-overload]
        return "" if missing(pairs) else counted(int(pairs), "pair") + groups  # type: ignore[call-overload]

    tested = words(peak.get("n"), peak.get("n_clusters"))
    pooled = words(peak.get("n_pooled"), peak.get("n_clusters_pooled"))
    return f"recovery of {pooled}, p of {tested}" if pooled and pooled != tested else tested


def _why_not(peak: Mapping[str, Any], confidence: float) -> str:
    """Why a peak is not confirmed: too few groups for a small p, or no effect that can be told from none."""
    if missing(peak.get("p")) and peak.get("status"):
        return f"; {peak['status']}"
    if _few_pooled(peak):
        few = counted(int(peak["n_clusters_pooled"]), "group")
        return f"; only {few} of the confirmation half has a gap, so nothing can be confirmed"
    clusters = peak.get("n_clusters")
    # a two-sided sign flip of k groups has 2^k outcomes, of which at least 2 are as extreme as the one observed
    smallest = 1.0 if missing(clusters) else min(1.0, 2.0 ** (1 - int(clusters)))  # type: ignore[arg-type]
    if not missing(clusters) and smallest > 1.0 - confidence:
        few = counted(int(clusters), "group")  # type: ignore[arg-type]
        return (
            f"; with {few} in the confirmation half no p can be below {number(smallest)}, so nothing can be confirmed"
        )
    return ", which is not distinguishable from no effect"


def _verb(kind: str, direction: str, metric: str) -> str:
    if kind == "recovery":
        return "destroys" if direction == "noise" else "recovers"
    return f"changes the {metric_words(metric)} by"


def _p(peak: Mapping[str, Any]) -> str:
    adjusted = peak.get("p_adjusted")
    return p_value(peak.get("p")) if missing(adjusted) else p_value(adjusted, "corrected p")


def _tested(study: Study) -> pd.DataFrame:
    rows = study.summary
    metric = study.metrics[0] if study.metrics else ""
    # a cell without p was not tested: a cut, one that no pair has, or one of a metric that is a distance
    return rows.loc[((rows["metric"] == metric) & rows["p_adjusted"].notna()).to_numpy()]


def _count_sentence(study: Study) -> str:
    rows = _tested(study)
    if not len(rows):
        return ""
    found = int(rows["detected"].to_numpy(dtype=bool).sum())
    level = percent(study.family_error)
    if not found:
        smallest = p_value(rows["p_adjusted"].min(), "smallest adjusted p")
        return (
            f"Nothing is detected: of {counted(len(rows), 'cell')} none differs from no effect after correction for "
            f"multiple comparisons ({smallest}, level {level})."
        )
    counts = f"{whole(found)} of {counted(len(rows), 'cell')} {'is' if found == 1 else 'are'} detected"
    corrected = f"after correction for multiple comparisons (level {level})"
    peak = _headline(study)
    if peak is None or len(rows.drop_duplicates(["sweep", "direction"])) == 1:
        return f"In all, {counts} {corrected}."
    same = (rows["sweep"] == peak.get("sweep")) & (rows["direction"] == peak.get("direction"))
    mine = rows.loc[same.to_numpy()]
    here = f"{whole(int(mine['detected'].to_numpy(dtype=bool).sum()))} of {counted(len(mine), 'cell')}"
    return f"In this sweep {here}, and over all sweeps {counts} {corrected}."


def _contrast_sentence(study: Study) -> str:
    groups = [str(group) for group in section(study.findings, "contrast").get("groups", [])]
    rows = main_contrasts(study)
    if not rows or len(groups) < 2:
        return ""
    clear = [row for row in rows if differs(row, study.confidence)]
    others = [f"{row.get('sweep')}" for row in rows if row not in clear]
    statistic = str(rows[0].get("statistic", "the statistic"))
    if not clear:
        return f"The two kinds do not differ clearly: the {statistic} is {_two_values(rows[0], groups, study)}."
    said = "; ".join(_two_values(row, groups, study) for row in clear)
    rest = f"; no clear difference in sweep {joined(others)}" if others else ""
    return f"In this data the two kinds differ: the {statistic} is {said}{rest}."


def _two_values(row: Mapping[str, Any], groups: Sequence[str], study: Study) -> str:
    values = list(row.get("values") or [None, None])
    p, name = (row["p_adjusted"], "adjusted p") if "p_adjusted" in row else (row.get("p"), "p")
    numbers = (
        f"difference {number(row.get('difference'))}, {percent(study.confidence)} interval {number(row.get('low'))} to "
        f"{number(row.get('high'))}" + ("" if missing(p) else f", {p_value(p, name)}")
    )
    where = f"sweep {row.get('sweep')}"
    return (
        f"{number(values[0])} for {groups[0]} pairs and {number(values[1])} for {groups[1]} pairs ({where}; {numbers})"
    )


def main_contrasts(study: Study) -> list[Mapping[str, Any]]:
    """The rows of the contrast that the text speaks of: first metric, the effective number of layers if it is there."""
    rows = records(section(study.findings, "contrast"), "rows")
    metric = study.metrics[0] if study.metrics else ""
    mine = [row for row in rows if row.get("metric", metric) == metric] or rows
    chosen = [row for row in mine if str(row.get("statistic", "")).startswith("effective number")]
    return chosen or mine[:1]


def _cut_sentence(study: Study) -> str:
    rows = study.summary
    metric = study.metrics[0] if study.metrics else ""
    cuts = rows.loc[((rows["metric"] == metric) & rows["cut"]).to_numpy()]
    if not len(cuts):
        return ""
    example = cuts.iloc[-1].to_dict()
    kind, direction = str(example["estimate_kind"]), str(example["direction"])
    size = "" if missing(example["estimate"]) else f" ({amount(example['estimate'], kind, metric, direction)})"
    ablation = kind == "effect"
    reason = (
        "what is read then no longer depends on the prompt"
        if ablation
        else "every path from what was changed to the answer runs through it, so no other value was possible"
    )
    if len(cuts) == 1:
        return f"Not a finding: the value at {cell_name(example)}{size} holds by construction; {reason}."
    many = counted(len(cuts), "cell")
    return (
        f"Not findings: {many}, such as {cell_name(example)}{size}, hold by construction; {reason}. "
        "They are hatched in the figures and kept out of rankings and tests."
    )

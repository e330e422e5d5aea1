"""What was found, in sentences that say only what the design supports; from what stands in `locate_edit.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engramscope.edit.names import editor_words
from engramscope.report.words import bare_p, joined, number, p_value, percent

CORRUPTIONS = {"gaussian": "noise on the subject", "str": "another subject"}
METRICS = {"prob": "probability", "logit_diff": "logit difference"}
TOKENS = {"any": "largest over tokens", "subject_last": "last subject token"}
OUTCOMES = {"rewrite": "rewrite", "paraphrase": "paraphrases", "neighbourhood": "neighbourhood"}
WAYS = {
    "random": "a random layer",
    "fixed": "the best fixed layer",
    "peak": "the fact's own tracing peak",
    "mean_peak": "the layer where mean tracing peaks",
}
#: the same for tables and legends
SHORT = {
    "gaussian": "noise", "str": "other subject", "prob": "probability", "logit_diff": "logit diff.",
    "any": "any token", "subject_last": "last subject token",
}  # fmt: skip
#: a corrected p up to this counts
LEVEL = 0.05


def site_words(site: str, window: int) -> str:
    """What tracing restores."""
    if site == "resid_post":
        return "the residual stream after one layer"
    return "the MLP of one layer" if window == 1 else f"a window of {window} MLP layers"


def brief_site(site: str, window: int) -> str:
    """The same for a table."""
    return "residual" if site == "resid_post" else "1 layer" if window == 1 else f"{window} layers"


def sentences(found: Mapping[str, Any]) -> list[str]:
    """The answer: the facts, what layer and tracing explain, the three controls, how far all analyses agree."""
    said = [_facts(found)]
    for editor in found["settings"]["methods"]:
        row = primary(found, editor)
        said += [_explained(row), _controls(row), *_elsewhere(row, found)] if row["status"] == "ok" else [_missing(row)]
    return [sentence for sentence in [*said, _agreement(found), *cautions(found)] if sentence]


def primary(found: Mapping[str, Any], editor: str, outcome: str = "rewrite") -> dict[str, Any]:
    """The analysis that is read first: the published one, or the first of those that were asked for."""
    return next(row for row in found["analyses"] if row["editor"] == editor and row["outcome"] == outcome)


def verdict(row: Mapping[str, Any]) -> str:
    """What the third control says against the second: "better", "worse" or "unclear" from the interval of their paired
    difference, "same" where every fact peaks at the fixed layer."""
    gap = row["choice"]["differences"][0]
    if row["choice"]["same_layer"] == row["choice"]["n_facts"]:
        return "same"
    if gap["low"] is None or gap["high"] is None:
        return "unclear"
    return "better" if gap["low"] > 0 else "worse" if gap["high"] < 0 else "unclear"


def cautions(found: Mapping[str, Any]) -> list[str]:
    """What a reader should know before believing it."""
    said = []
    count, settings = found["model"]["n_layers"], found["settings"]
    wide = [place["window"] for place in found["places"] if place["window"] > max(1, count // 3)]
    if wide:
        said.append(
            f"A window of {max(wide)} spans much of a model of {count} layers, so neighbouring layers are hardly told "
            "apart by tracing; look at the analyses of narrower windows."
        )
    weak = [one for one in found["reliability"] if (one["reliability"] or 0.0) < 0.5]
    if weak:
        said.append(
            f"{settings['draws']} noise draws measure {len(weak)} of {len(found['reliability'])} predictors with a "
            "reliability below 0.5: little of what they could explain can be seen; give more --draws."
        )
    if settings["draws"] < 3 and "gaussian" in settings["corruptions"]:
        said.append("Fewer than three noise draws do not show how much depends on the noise.")
    relations = found["facts"]["relations"]
    if settings["cluster"] == "fact" and relations > 1:
        said.append(
            f"Intervals take facts for independent; they come from {relations} relations, and facts of one relation "
            "may be alike (--cluster relation)."
        )
    if settings["cluster"] == "relation" and relations < found["facts"]["chosen"]:
        said.append(
            "The gain once chance is taken off takes facts of one relation for independent, so it and its interval may "
            "be too high; p does not."
        )
    said.append(
        "This is about these facts, editors and options in this model. That an edit succeeds at a layer does not show "
        "that the fact was stored there."
    )
    return said


def _facts(found: Mapping[str, Any]) -> str:
    facts, settings = found["facts"], found["settings"]
    left = "; ".join(f"{count} because {reason}" for reason, count in facts["left_out"].items())
    aside = f" ({left})" if left else ""
    return (
        f"{facts['chosen']} facts that {found['model']['name']} states right, of {facts['looked_at']} that were looked "
        f"at{aside}, were traced, and edited at {len(found['layers'])} layers one at a time by "
        f"{joined([editor_words(name) for name in settings['methods']], 20)}."
    )


def _explained(row: Mapping[str, Any]) -> str:
    models = row["models"]
    gain, p = models["gain_adjusted"], models["permutation_p"]
    apart = gain["low"] is not None and gain["low"] > 0, p is not None and p <= LEVEL
    more = (
        "Tracing says something beyond the layer" if all(apart)
        else "Whether tracing says anything beyond the layer is not clear, interval and test disagree" if any(apart)
        else "Beyond the layer tracing adds nothing that can be told from chance"
    )  # fmt: skip
    how = f"{CORRUPTIONS[row['corruption']]}, {METRICS[row['metric']]}, {TOKENS[row['tokens']]}"
    return (
        f"{editor_words(row['editor'])}: the layer explains {percent(models['layer']['value'])} of the variance of the "
        f"rewrite's success, tracing alone ({how}; {site_words(row['site'], row['window'])}) "
        f"{percent(models['predictor']['value'])}. {more}: {points(gain['value'])} "
        f"({_hundredfold(gain['low'])} to {_hundredfold(gain['high'])}) of the variance once chance is taken off, "
        f"{_hundredfold(models['gain'])} before; {p_value(p)}."
    )


def points(value: object) -> str:
    """A share of the variance in percentage points."""
    return f"{_hundredfold(value)} percentage points"


def _hundredfold(value: object) -> str:
    return number(None if value is None else 100 * float(str(value)))


def _controls(row: Mapping[str, Any]) -> str:
    success, gap = row["choice"]["success"], row["choice"]["differences"][0]
    says = {
        "same": "every fact peaks at that layer, so tracing each fact tells no more than choosing one layer for all",
        "better": "here locating helps",
        "worse": "choosing the layer by the fact's tracing is worse",
        "unclear": "a difference is not shown, so that locating helps is not either",
    }[verdict(row)]
    return (
        f"With {editor_words(row['editor'])} the edit's success is {number(success['peak']['value'])} at "
        f"{WAYS['peak']}, {number(success['fixed']['value'])} at {WAYS['fixed']} (chosen on other facts) and "
        f"{number(success['random']['value'])} at {WAYS['random']}; own peak minus best fixed layer "
        f"{number(gap['value'])} ({number(gap['low'])} to {number(gap['high'])}): {says}."
    )


def _elsewhere(row: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """The same analysis with other windows or sites restored."""
    alike = ("editor", "outcome", "corruption", "metric", "tokens")
    others = [
        one
        for one in found["analyses"]
        if one is not row and one["status"] == "ok" and all(one[key] == row[key] for key in alike)
    ]
    said = []
    for one in others:
        gap, gain = one["choice"]["differences"][0], one["models"]["gain_adjusted"]
        same = one["choice"]["same_layer"]
        aside = f", the same layer for {same} of {one['facts']} facts" if same else ""
        said.append(
            f"When tracing restores {site_words(one['site'], one['window'])} instead, it explains "
            f"{percent(one['models']['predictor']['value'])} alone and {_hundredfold(gain['value'])} points beyond the "
            f"layer ({_hundredfold(gain['low'])} to {_hundredfold(gain['high'])}), and own peak minus best fixed layer "
            f"is {number(gap['value'])} ({number(gap['low'])} to {number(gap['high'])}){aside}."
        )
    return said


def _missing(row: Mapping[str, Any]) -> str:
    return f"{editor_words(row['editor'])}: {row['status']}."


def _agreement(found: Mapping[str, Any]) -> str:
    done = [row for row in found["analyses"] if row["status"] == "ok"]
    if not done:
        return ""
    adds = sum((row["models"]["permutation_p_holm"] or 1.0) <= LEVEL for row in done)
    significant = [row for row in done if (row["choice"]["differences"][0]["p_holm"] or 1.0) <= LEVEL]
    better = sum(row["choice"]["differences"][0]["value"] > 0 for row in significant)
    return (
        f"Over all {len(done)} analyses (window, corruption, metric, tokens, editor, outcome), corrected for their "
        f"number (Holm, p at most {bare_p(LEVEL)}): tracing adds to the layer in {adds}; the own peak beats the best "
        f"fixed layer in {better} and is worse in {len(significant) - better}."
    )

"""The recommendation in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engramscope.report.words import joined, number, percent

#: said whatever was found (Hase et al. 2023, arXiv 2301.04213)
NOT_EDITABILITY = (
    "Localisation does not imply editability: where tracing points says almost nothing about which layer edits best "
    "(Hase et al. 2023), so try an edit at other layers, too, and compare."
)


def layer_words(layers: Sequence[int]) -> str:
    """ "layer 4", "layers 3 to 5", "layers 1, 4 and 5"."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    if list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"layers {layers[0]} to {layers[-1]}"
    return f"layers {joined([str(layer) for layer in layers], len(layers))}"


def sentences(found: Mapping[str, Any]) -> list[str]:
    """Which layers, how sure, and what it does not mean; from what stands in `recommendation.json`."""
    main = found["main"]
    said = [_facts_sentence(found), _main_sentence(main)]
    if main["supported"]:
        said += [_stability_sentence(main), _corruption_sentence(found)]
    said += [_end_sentence(found), _window_sentence(found), _audit_sentence(found), NOT_EDITABILITY]
    return [sentence for sentence in said if sentence]


def _facts_sentence(found: Mapping[str, Any]) -> str:
    known = found["known"]
    return f"{found['model']} knows {known['kept']} of {known['of']} facts; the answer is about those." if known else ""


def _main_sentence(main: Mapping[str, Any]) -> str:
    if not main["supported"]:
        return (
            "No layer can be recommended: at the last subject token no layer's MLP restores the answer by more than "
            "chance would, after correction over all layers."
        )
    at = main["layers"].index(main["peak"])
    return (
        f"Look at {layer_words(main['recommended'])}: restoring the MLP at the last subject token does most in layer "
        f"{main['peak']}, {percent(main['recovery'][at])} of the gap in logit difference "
        f"({number(main['effect'][at])} logits, 95 % interval {number(main['low'][at])} to {number(main['high'][at])})."
    )


def _stability_sentence(main: Mapping[str, Any]) -> str:
    share = main["shares"][main["layers"].index(main["peak"])]
    return (
        f"Drawn anew, the facts put the peak in this layer in {percent(share)} of the resamples, in it or a neighbour "
        f"in {percent(main['near'])}; the centre of mass lies at layer {number(main['centre'])} "
        f"({number(main['centre_low'])} to {number(main['centre_high'])})."
    )


def _corruption_sentence(found: Mapping[str, Any]) -> str:
    other, both = found.get("noise"), found.get("agreement")
    if not other or not both:
        return ""
    if other["peak"] < 0:
        return "Under Gaussian noise no layer could be chosen."
    shared = layer_words(both["both"]) if both["both"] else "no layer"
    correlation = "–" if both["correlation"] is None else number(both["correlation"])
    sure = "" if other["supported"] else ", though no layer is detected there"
    return (
        f"Under Gaussian noise the peak is layer {other['peak']}{sure} (rank correlation of the two profiles "
        f"{correlation}; both recommend {shared})."
    )


def _end_sentence(found: Mapping[str, Any]) -> str:
    """Where the subject holds nothing, the end of the prompt may."""
    end = found.get("last")
    if not end or not end["supported"] or found["main"]["supported"]:
        return ""
    share = percent(end["recovery"][end["layers"].index(end["peak"])])
    return f"At the last token of the prompt the MLP of layer {end['peak']} does restore {share} of the gap."


def _window_sentence(found: Mapping[str, Any]) -> str:
    wide = found.get("windows")
    if not wide or wide["peak"] < 0:
        return ""
    return (
        f"Windows of {wide['window']} layers patched together peak at layer {wide['peak']}; windows inflate effects, "
        "so they are shown beside the single layers only."
    )


def _audit_sentence(found: Mapping[str, Any]) -> str:
    count = sum(len(arm["warnings"]) for arm in found["arms"])
    if not count:
        return "The audit of the design has no warning."
    first = next(warning for arm in found["arms"] for warning in arm["warnings"])
    return f"The audit warns: {first}" if count == 1 else f"The audit has {count} warnings, the first: {first}"

"""Numbers and names as a reader wants to see them. Everything here returns plain text, not markup."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from engramscope.results import effect_scale
from engramscope.results.numbers import DASH as DASH
from engramscope.results.numbers import MINUS as MINUS
from engramscope.results.numbers import NARROW_SPACE as NARROW_SPACE
from engramscope.results.numbers import NO_BREAK as NO_BREAK
from engramscope.results.numbers import counted as counted
from engramscope.results.numbers import missing as missing
from engramscope.results.numbers import number as number
from engramscope.results.numbers import percent as percent
from engramscope.results.numbers import whole as whole

SITE_WORDS: Mapping[str, str] = {
    "embed": "token embedding",
    "resid_pre": "residual stream before the block",
    "resid_mid": "residual stream between attention and MLP",
    "resid_post": "residual stream after the block",
    "attn_out": "attention output",
    "mlp_out": "MLP output",
    "q": "queries",
    "k": "keys",
    "v": "values",
    "z": "attention head output",
    "pattern": "attention pattern",
    "mlp_act": "MLP neurons",
    "final_norm": "final norm",
    "logits": "logits",
}
#: begins the site of a weight transplant
WEIGHTS = "weights:"
_PART_WORDS: Mapping[str, str] = {
    "block": "block",
    "attn": "attention",
    "mlp": "MLP",
    "norms": "norms",
    "embed": "embeddings",
    "final_norm": "final norm",
    "head": "head",
}
METRIC_WORDS: Mapping[str, str] = {
    "logit_diff": "logit difference",
    "mean_logit_diff": "mean logit difference",
    "sum_logit_diff": "difference of logit sums",
    "prob": "probability",
    "log_prob": "log probability",
    "answer_log_prob": "log probability of the whole answer",
    "kl": "KL divergence",
    "rank": "rank",
}
METRIC_UNITS: Mapping[str, str] = {
    "logit_diff": "logits",
    "mean_logit_diff": "logits",
    "sum_logit_diff": "logits",
    "prob": "in probability",
    "log_prob": "nats",
    "answer_log_prob": "nats",
    "kl": "nats",
    "rank": "ranks",
}
#: in the order of the prompt
_ROLE_WORDS: Mapping[str, str] = {
    "all": "all positions",
    "bos": "beginning of text",
    "before": "before the subject",
    "subject": "subject",
    "subject_first": "first subject token",
    "subject_middle": "middle subject tokens",
    "subject_last": "last subject token",
    "after_subject": "first token after the subject",
    "further": "further tokens",
    "last": "last token",
}
#: what the star of `role_label` means
STAR = "A star marks tokens of the subject."
_CONTROL = {"\n": "↵", "\r": "↵", "\t": "⇥", "": "∅"}


def p_value(value: object, name: str = "p") -> str:
    """`p = 0.012`, or `p < 0.0001`."""
    if missing(value):
        return f"no {name}"
    x = float(value)  # type: ignore[arg-type]
    return f"{name} < 0.0001" if x < 1e-4 else f"{name} = {bare_p(x)}"


def bare_p(value: object) -> str:
    """A p value on its own, for a table; a dash for a missing one."""
    if missing(value):
        return DASH
    x = float(value)  # type: ignore[arg-type]
    if x < 1e-4:
        return "<0.0001"
    if x > 0.995:
        return "1"
    return f"{x:.4f}" if x < 0.001 else (f"{x:.3f}" if x < 0.1 else f"{x:.2f}")


def amount(value: object, kind: str, metric: str, direction: str) -> str:
    """An estimate as text: a recovery (or, when noising, the loss) in percent, an effect with its unit."""
    if kind == "recovery":
        return percent(shown(value, kind, direction))
    unit = METRIC_UNITS.get(metric, "")
    return f"{number(value)}{NARROW_SPACE if unit else ''}{unit}"


def interval(low: object, high: object, kind: str, direction: str) -> str:
    """An interval as text, `51 to 71 %`; with its ends turned round where the loss is shown."""
    if missing(low) or missing(high):
        return "no interval"
    ends = sorted(float(shown(end, kind, direction)) for end in (low, high))  # type: ignore[arg-type]
    if kind == "recovery":
        first, second = (percent(end) for end in ends)
        return f"{first.removesuffix(f'{NARROW_SPACE}%')} to {second}"
    return f"{number(ends[0])} to {number(ends[1])}"


def shown(value: object, kind: str, direction: str) -> object:
    """What figures and tables show: the estimate; for noising the *loss* `1 - recovery` (0 = nothing happened).

    With it, 0 means "this place does not matter" in both directions, and a diverging colour scale has its centre right.
    """
    return None if missing(value) else effect_scale.shown(float(value), kind, direction)  # type: ignore[arg-type]


def quantity(kind: str, direction: str) -> str:
    """The name of what is shown: "recovery", "loss" or "effect"."""
    return "loss" if effect_scale.is_loss(kind, direction) else kind


def capital(text: str) -> str:
    """The text with a capital in front and its other letters as they are: "KL divergence" stays that."""
    return text[:1].upper() + text[1:]


def metric_words(metric: str) -> str:
    """A metric in words: "logit difference"."""
    return METRIC_WORDS.get(metric, metric.replace("_", " "))


def role_words(role: object) -> str:
    """A role of a position in words: "last subject token"; the empty text for a missing one."""
    if missing(role):
        return ""
    text = str(role)
    return _ROLE_WORDS.get(text, text)


def role_label(role: object) -> str:
    """The same for an axis; tokens of the subject have a star, as in the figures of Meng et al."""
    return role_words(role) + ("*" if str(role).split("_")[0] == "subject" else "")


def star_note(labels: Sequence[str]) -> str:
    """What the star of `role_label` means, for the caption of a figure that has one; else empty."""
    return STAR if any(label.endswith("*") for label in labels) else ""


def role_order(role: object) -> int:
    """Where a role stands in a prompt; spans in the middle, in the order in which they come."""
    order = list(_ROLE_WORDS)
    text = str(role)
    return order.index(text) if text in order else order.index("further")


def cell_words(cell: Mapping[str, Any]) -> str:
    """A cell in words: "head 5 of layer 3", "the MLP output of layer 2 at subject, last"."""
    site, layer, head = str(cell.get("site")), cell.get("layer"), cell.get("head")
    name = SITE_WORDS.get(site, site)
    if not missing(head):
        text = f"head {int(head)} of layer {int(layer)}" if not missing(layer) else f"head {int(head)}"  # type: ignore[arg-type]
        text += "" if site == "z" else f" ({name})"
    elif site.startswith(WEIGHTS):
        text = weights_words(site, layer)
    elif site not in SITE_WORDS:
        text = (
            f"the module {site}"
            if missing(layer) or "{layer}" not in site
            else f"the module {module_path(site, layer)}"
        )
    elif site == "z":
        text = f"the attention heads of layer {int(layer)}" if not missing(layer) else "the attention heads"  # type: ignore[arg-type]
    else:
        text = f"the {name}" + ("" if missing(layer) else f" of layer {int(layer)}")  # type: ignore[arg-type]
    return text + place_words(cell) + window_words(cell)


def cell_name(cell: Mapping[str, Any]) -> str:
    """A short name of a cell: `L3H5`, `L2 mlp_out`, `L4 resid_post at subject, last`."""
    site, layer, head = str(cell.get("site")), cell.get("layer"), cell.get("head")
    if site.startswith(WEIGHTS):
        part = site.removeprefix(WEIGHTS)
        text = f"{'' if missing(layer) or '{layer}' in part else f'L{int(layer)} '}weights of {_part(part, layer)}"  # type: ignore[call-overload]
    elif site not in SITE_WORDS:
        text = site if missing(layer) else module_path(site, layer)
    else:
        number_ = ("" if missing(layer) else f"L{int(layer)}") + ("" if missing(head) else f"H{int(head)}")  # type: ignore[arg-type]
        text = number_ if site == "z" and not missing(head) else f"{number_} {site}".strip()
    return text + place_words(cell) + window_words(cell)


def weights_words(site: str, layer: object) -> str:
    """A part whose weights are transplanted: "the weights of the MLP of layer 2", "the weights of the embeddings"."""
    part = site.removeprefix(WEIGHTS)
    named = f"the {_PART_WORDS[part]}" if part in _PART_WORDS else f"the module {_part(part, layer)}"
    where = "" if missing(layer) or "{layer}" in part else f" of layer {int(layer)}"  # type: ignore[call-overload]
    return f"the weights of {named}{where}"


def _part(part: str, layer: object) -> str:
    return _PART_WORDS.get(part, part if missing(layer) else module_path(part, layer))


def module_path(site: str, layer: object) -> str:
    """The dotted path of a module with its layer filled in."""
    return site.replace("{layer}", str(int(layer)))  # type: ignore[call-overload]


def place_words(cell: Mapping[str, Any]) -> str:
    """Where in the prompt a cell is, " at subject, last"; empty for all positions together."""
    position, role = cell.get("position"), cell.get("position_role")
    if not missing(position):
        known = "" if missing(role) or role == "all" else f" ({role_words(role)})"
        return f" at position {int(position)}{known}"  # type: ignore[arg-type]
    if missing(role) or role == "all":
        return ""
    if role == "last":
        return " at the last position"
    article = "the " if str(role).startswith(("subject", "after_subject")) else ""
    return f" at {article}{role_words(role)}"


def window_words(cell: Mapping[str, Any]) -> str:
    """ " with its neighbours (window 3)" where several layers are patched together, else empty."""
    window = cell.get("window")
    return "" if missing(window) or int(window) <= 1 else f" (window {int(window)})"  # type: ignore[arg-type]


def token_text(token: object) -> str:
    """A token as it can be shown in one line: invisible characters get a sign, other controls are dropped."""
    text = "" if missing(token) else str(token)
    if text in _CONTROL:
        return _CONTROL[text]
    if text.strip(" ") == "":
        return "␣" * len(text)
    shown_ = "".join(_CONTROL.get(char, char) for char in text)
    return "".join(char if unicodedata.category(char) not in {"Cc", "Cf", "Cs"} else "·" for char in shown_).strip(" ")


def shortened(text: str, length: int = 22) -> str:
    """At most `length` characters; the middle is left out."""
    if len(text) <= length:
        return text
    tail = length // 3
    return f"{text[: length - tail - 1]}…{text[-tail:]}"


def joined(items: list[str], most: int = 4) -> str:
    """`a, b and c`; beyond `most` items the rest is counted."""
    if len(items) > most:
        items = [*items[:most], f"{len(items) - most} more"]
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def seconds(value: object) -> str:
    """A duration: `0.4 s`, `3 min 20 s`, `2 h 5 min`."""
    if missing(value):
        return DASH
    total = float(value)  # type: ignore[arg-type]
    if total < 60:
        return f"{total:.1f} s" if total >= 0.05 else "0 s"
    minutes, rest = divmod(round(total), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left} min" if hours else f"{minutes} min {rest} s"

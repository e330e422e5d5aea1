"""How much an edit moves a model, and whether the model still writes the language: a line for every edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite

from pydantic import BaseModel, ConfigDict, Field

from engramscope.edit.edit import Edit
from engramscope.evaluate.perplexity import Perplexity, perplexity_of
from engramscope.models.model import Model

#: under which editors of one key-value matrix note u·k over u·k* for each fact
KEY_RATIO = "key_ratio"


class HealthLimits(BaseModel):
    """Where an edit is warned of.

    Attributes:
        change: |ΔW| / |W| of a parameter, Frobenius.
        alignment: |u·k / u·k*|, the key of the bare prompt against the averaged one; below it there is a warning.
        perplexity: perplexity after the edit over that before it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    change: float = Field(default=1.0, gt=0)
    alignment: float = Field(default=0.1, gt=0)
    perplexity: float = Field(default=2.0, gt=1)


@dataclass(frozen=True)
class Health:
    """What an edit does to a model.

    Attributes:
        norms: parameter -> |ΔW| / |W|.
        alignments: u·k / u·k* of each fact for which the editor noted it.
        before, after: perplexity of held-out texts; None where there were none.
        warnings: sentences; empty where nothing is beyond its limit.
    """

    norms: Mapping[str, float]
    alignments: tuple[float, ...] = ()
    before: Perplexity | None = None
    after: Perplexity | None = None
    warnings: tuple[str, ...] = field(default=())

    @property
    def line(self) -> str:
        """One line for a person."""
        parts = [f"|ΔW|/|W| {max(self.norms.values(), default=0.0):.3g}" + _where(self.norms)]
        if self.alignments:
            least = min(self.alignments, key=abs)
            parts.append(f"u·k/u·k* {least:.3g}" + (" (smallest)" if len(self.alignments) > 1 else ""))
        if self.before and self.after:
            parts.append(f"perplexity {_shown(self.before)} → {_shown(self.after)}")
        return "; ".join(parts)

    def as_dict(self) -> dict[str, object]:
        """JSON values; a perplexity that is infinite is None."""
        return {
            "norms": dict(self.norms), "alignments": list(self.alignments), "warnings": list(self.warnings),
            "perplexity_before": _number(self.before), "perplexity_after": _number(self.after),
        }  # fmt: skip


def health_of(
    model: Model, edit: Edit, *, before: Perplexity | None = None, after: Perplexity | None = None,
    limits: HealthLimits | None = None,
) -> Health:  # fmt: skip
    """The health of an edit that is not in the model now.

    Without perplexities it says what can be known before the edit is applied.

    Args:
        model: the model without the edit: |W| is read from it.
        edit: the edit.
        before: perplexity of the model without the edit.
        after: with it, of the same texts.
        limits: beyond which there is a warning.
    """
    chosen = limits or HealthLimits()
    norms = edit.norms(model)
    alignments = tuple(
        float(entry[KEY_RATIO]) for entry in edit.diagnostics.get("facts", ()) if entry.get(KEY_RATIO) is not None
    )
    warnings = _warnings(norms, alignments, before, after, chosen)
    return Health(norms, alignments, before, after, tuple(warnings))


def check_health(
    model: Model, edit: Edit, texts: Sequence[str], *, before: Perplexity | None = None,
    limits: HealthLimits | None = None, anyway: bool = False,
) -> Health:  # fmt: skip
    """The health of an edit, with the perplexity of texts before it and with it applied for that time.

    Args:
        model: the model without the edit; it is left as it was.
        edit: the edit.
        texts: held-out texts; none gives a health without perplexities.
        before: perplexity of these texts before the edit, where it is known already.
        limits: beyond which there is a warning.
        anyway: as for `Edit.apply`.
    """
    if not texts:
        return health_of(model, edit, limits=limits)
    known = before or perplexity_of(model, texts)
    with edit.applied(model, anyway=anyway):
        after = perplexity_of(model, texts)
    return health_of(model, edit, before=known, after=after, limits=limits)


def _warnings(
    norms: Mapping[str, float], alignments: Sequence[float], before: Perplexity | None, after: Perplexity | None,
    limits: HealthLimits,
) -> list[str]:  # fmt: skip
    found = []
    # "not <=" so that a norm that is not a number is warned of, too
    large = {name: value for name, value in norms.items() if not value <= limits.change}
    if large:
        name = max(large, key=lambda key: large[key] if large[key] == large[key] else float("inf"))
        found.append(
            f"The edit changes {name} by {large[name]:.3g} times its own norm (limit {limits.change:g}); the model is "
            "likely to collapse."
        )
    small = [value for value in alignments if not abs(value) >= limits.alignment]
    if small:
        least = min(small, key=abs)
        found.append(
            f"u·k / u·k* is {least:.3g} (limit {limits.alignment:g}): the key of the bare prompt hardly points along "
            "the averaged one. An update that is divided by u·k is huge; one that is divided by u·k* hardly reaches "
            "the bare prompt."
        )
    if before and after:
        if after.collapsed and not before.collapsed:
            found.append("The model has collapsed: with the edit its logits are not numbers.")
        elif after.value > limits.perplexity * before.value:
            found.append(
                f"The perplexity of held-out texts rises from {_shown(before)} to {_shown(after)}, more than "
                f"{limits.perplexity:g} times; the edit damages the model."
            )
    return found


def _where(norms: Mapping[str, float]) -> str:
    if not norms:
        return ""
    name = max(norms, key=lambda key: norms[key])
    return f" ({name})" if len(norms) == 1 else f" (the largest of {len(norms)}, {name})"


def _shown(found: Perplexity) -> str:
    return f"{found.value:.4g}" if isfinite(found.value) else "infinite"


def _number(found: Perplexity | None) -> float | None:
    return found.value if found and isfinite(found.value) else None

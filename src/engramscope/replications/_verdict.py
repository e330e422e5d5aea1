"""From a published and a measured value to a verdict. Pure functions: they know no studies and no models."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["reproduced", "differs", "no published value for this model", "not measured"]
REPRODUCED: Outcome = "reproduced"
DIFFERS: Outcome = "differs"
UNPUBLISHED: Outcome = "no published value for this model"
NOT_MEASURED: Outcome = "not measured"

#: the published detection rule: so many standard deviations from the mean over all cells
LINE = 2.0
#: a head that is missing or too many still counts where it lies so near the line, in standard deviations
NEAR = 0.3


@dataclass(frozen=True)
class Verdict:
    """What is said of one value.

    Attributes:
        outcome: one of the four.
        why: a sentence, or "".
        exact: for sets and counts, whether they agree without any allowance; None for numbers.
    """

    outcome: Outcome
    why: str = ""
    exact: bool | None = None


@dataclass(frozen=True)
class Tolerance:
    """How far a number may lie from the published one, on either side.

    Attributes:
        within: absolute, in the number's own unit.
        within_share: relative to the published number, 0.25 for 25 %.
        at_least, at_most: bounds that are published themselves.
    """

    within: float | None = None
    within_share: float | None = None
    at_least: float | None = None
    at_most: float | None = None

    def room(self, published: float) -> float:
        """The allowed distance from the published number; the larger of the two where both are given."""
        return max(self.within or 0.0, (self.within_share or 0.0) * abs(published))


@dataclass(frozen=True)
class HeadSets:
    """Heads ("layer.head") that a rule detects, as published. None: not published, so nothing is compared.

    Attributes:
        positive, negative: all that are detected with this sign.
        either: all that are detected, where the sign is not published.
        includes_positive, includes_negative, includes: some that are (with this sign, or with either).
        excludes: some that are not.
    """

    positive: tuple[str, ...] | None = None
    negative: tuple[str, ...] | None = None
    either: tuple[str, ...] | None = None
    includes_positive: tuple[str, ...] = ()
    includes_negative: tuple[str, ...] = ()
    includes: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()

    @property
    def named(self) -> frozenset[str]:
        """Every head that is named as detected."""
        parts = (self.positive, self.negative, self.either, self.includes_positive, self.includes_negative,
                 self.includes)  # fmt: skip
        return frozenset(head for part in parts for head in part or ())


@dataclass(frozen=True)
class Detection:
    """Heads by their distance from the mean over all cells.

    Attributes:
        z: head -> (effect - mean) / SD, mean and SD over all cells of the sweep, not only over those listed.
        line: where a head counts as detected.
    """

    z: Mapping[str, float]
    line: float = LINE

    @property
    def positive(self) -> tuple[str, ...]:
        """Detected heads that help, strongest first."""
        return tuple(sorted((head for head, z in self.z.items() if z > self.line), key=lambda head: -self.z[head]))

    @property
    def negative(self) -> tuple[str, ...]:
        """Detected heads that hinder, strongest first."""
        return tuple(sorted((head for head, z in self.z.items() if z < -self.line), key=lambda head: self.z[head]))

    def near(self, head: str, allowance: float = NEAR) -> bool:
        """Whether a head lies so near the line that it may count on either side."""
        return abs(abs(self.z.get(head, 0.0)) - self.line) <= allowance + 1e-9


def number(measured: float, published: float | None, tolerance: Tolerance) -> Verdict:
    """Whether a number lies within its tolerance, on both sides, and within every published bound."""
    if not math.isfinite(measured):
        return Verdict(NOT_MEASURED, "the measured value is not a finite number")
    found: list[str] = []
    if published is not None:
        room = tolerance.room(published)
        if abs(measured - published) > room + 1e-12 * max(1.0, abs(published)):
            found.append(f"{abs(measured - published):.3g} away, and {room:.3g} is allowed")
    if tolerance.at_least is not None and measured < tolerance.at_least:
        found.append(f"below {tolerance.at_least:g}")
    if tolerance.at_most is not None and measured > tolerance.at_most:
        found.append(f"above {tolerance.at_most:g}")
    return Verdict(DIFFERS, "; ".join(found)) if found else Verdict(REPRODUCED)


def layers(measured: int, published: Sequence[int], within: int) -> Verdict:
    """Whether a layer is one of the published ones, or at most `within` away from the nearest of them."""
    away = min(abs(measured - layer) for layer in published)
    if away > within:
        return Verdict(DIFFERS, f"{away} layers away, and {within} are allowed")
    return Verdict(REPRODUCED)


def heads(found: Detection, published: HeadSets, allowance: float = NEAR) -> Verdict:
    """Whether the detected heads are the published ones, signs kept.

    A head that is missing, or one too many, still counts when it lies within `allowance` standard deviations of the
    line; then the sets agree, but not exactly. Where only some heads are named there is nothing to be exact about.
    """
    wrong = _wrong_heads(found, published)
    whole = any(part is not None for part in (published.positive, published.negative, published.either))
    if not wrong:
        return Verdict(REPRODUCED, exact=True if whole else None)
    far = [head for head in wrong if not _forgiven(found, published, head, allowance)]
    shown = _grouped(wrong, found)
    if far:
        return Verdict(DIFFERS, shown, exact=False if whole else None)
    return Verdict(REPRODUCED, f"{shown}, within {allowance:g} SD of the line", exact=False if whole else None)


def _wrong_heads(found: Detection, published: HeadSets) -> dict[str, str]:
    positive, negative = set(found.positive), set(found.negative)
    both = positive | negative
    wrong: dict[str, str] = {}
    complete = (
        (positive, published.positive, " +"), (negative, published.negative, " −"), (both, published.either, ""),
    )  # fmt: skip
    for measured, wanted, sign in complete:
        if wanted is not None:
            wrong |= dict.fromkeys(sorted(measured - set(wanted)), f"too many{sign}")
            wrong |= dict.fromkeys(sorted(set(wanted) - measured), f"missing{sign}")
    some = (
        (positive, published.includes_positive, " +"), (negative, published.includes_negative, " −"),
        (both, published.includes, ""),
    )  # fmt: skip
    for measured, wanted, sign in some:
        wrong |= dict.fromkeys(sorted(set(wanted) - measured), f"missing{sign}")
    return wrong | dict.fromkeys(sorted(set(published.excludes) & both), "too many")


def _grouped(wrong: Mapping[str, str], found: Detection) -> str:
    """What is wrong with which heads: "missing +: 9.9 (z = 1.63); too many −: 1.4 (z = -3.41)"."""
    groups: dict[str, list[str]] = {}
    for head, what in wrong.items():
        groups.setdefault(what, []).append(f"{head} (z = {found.z.get(head, math.nan):.2f})")
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in sorted(groups.items()))


def _forgiven(found: Detection, published: HeadSets, head: str, allowance: float) -> bool:
    if not found.near(head, allowance):
        return False
    # near the line, but on the side of the other sign, is not near the line that counts
    z = found.z.get(head, 0.0)
    wanted_up = head in {*(published.positive or ()), *published.includes_positive}
    wanted_down = head in {*(published.negative or ()), *published.includes_negative}
    return not (wanted_up and z < 0) and not (wanted_down and z > 0)


def counts(
    found: Mapping[str, int], least: Mapping[str, int], most: Mapping[str, int], published: Mapping[str, int]
) -> Verdict:
    """Whether the members detected of each class are as many as published.

    Args:
        found: detected members.
        least, most: the same without, and with, the members near the line.
        published: as published; classes that are not named are not compared.
    """
    wrong = {name: want for name, want in published.items() if found[name] != want}
    if not wrong:
        return Verdict(REPRODUCED, exact=True)
    shown = ", ".join(f"{name}: {found[name]}, published {want}" for name, want in wrong.items())
    if all(least[name] <= want <= most[name] for name, want in wrong.items()):
        return Verdict(REPRODUCED, f"{shown}; the difference lies within {NEAR:g} SD of the line", exact=False)
    return Verdict(DIFFERS, shown, exact=False)


def order(larger: float, smaller: float, factor: float = 1.0) -> Verdict:
    """Whether one number is larger than another; by a factor it has to be positive as well."""
    if not (math.isfinite(larger) and math.isfinite(smaller)):
        return Verdict(NOT_MEASURED, "one of the two is not a finite number")
    if larger > factor * smaller and (factor == 1.0 or larger > 0):
        return Verdict(REPRODUCED)
    than = "" if factor == 1.0 else f"{factor:g} times "
    return Verdict(DIFFERS, f"{larger:.3g} is not larger than {than}{smaller:.3g}")


def beyond_chance(jaccard: float, p: float, level: float) -> Verdict:
    """Whether two sets share more than two random ones would."""
    if math.isnan(jaccard):
        return Verdict(DIFFERS, "neither set has a member")
    if p <= level:
        return Verdict(REPRODUCED, f"p = {p:.2g} for an overlap by chance")
    return Verdict(DIFFERS, f"p = {p:.2g} for an overlap by chance")


@dataclass(frozen=True)
class Judged:
    """A value's verdict, and whether it takes part in the verdict on the whole."""

    verdict: Verdict
    counts: bool


@dataclass(frozen=True)
class Overall:
    """The verdict on a whole table or figure.

    Attributes:
        outcome: one of the four.
        why: a sentence, or "".
        tally: how many values there are of each outcome, all of them.
    """

    outcome: Outcome
    why: str = ""
    tally: Mapping[str, int] = field(default_factory=dict)


def overall(values: Sequence[Judged], exact: int | None = None) -> Overall:
    """The verdict on the whole from those on the values that count.

    Reproduced: every value that counts is, and of those that are sets or counts at least `exact` agree exactly. One
    that differs decides; otherwise one that was not measured leaves the whole open.

    Args:
        values: all values.
        exact: see above; None for no such rule.
    """
    tally = {outcome: _count(values, outcome) for outcome in (REPRODUCED, DIFFERS, UNPUBLISHED, NOT_MEASURED)}
    deciding = [value.verdict for value in values if value.counts]
    outcomes: Collection[Outcome] = {verdict.outcome for verdict in deciding}
    if not deciding or outcomes <= {UNPUBLISHED, NOT_MEASURED}:
        open_ = NOT_MEASURED in outcomes and UNPUBLISHED not in outcomes
        why = "none of the values that decide was measured" if open_ else ""
        return Overall(NOT_MEASURED if open_ else UNPUBLISHED, why, tally)
    differing = sum(verdict.outcome == DIFFERS for verdict in deciding)
    if differing:
        return Overall(DIFFERS, f"{differing} of the {len(deciding)} values that decide differ", tally)
    missing = sum(verdict.outcome == NOT_MEASURED for verdict in deciding)
    if missing:
        return Overall(NOT_MEASURED, f"{missing} of the {len(deciding)} values that decide were not measured", tally)
    rows = [verdict for verdict in deciding if verdict.exact is not None]
    agreeing = sum(verdict.exact is True for verdict in rows)
    if exact is not None and agreeing < exact:
        return Overall(DIFFERS, f"{agreeing} of {len(rows)} rows agree exactly, and {exact} must", tally)
    said = f"{agreeing} of {len(rows)} rows agree exactly" if exact is not None else ""
    return Overall(REPRODUCED, said, tally)


def _count(values: Sequence[Judged], outcome: Outcome) -> int:
    return sum(value.verdict.outcome == outcome for value in values)

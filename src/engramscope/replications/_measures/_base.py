"""What a measure is: a kind of published value, how it is measured again, and when the two agree."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from engramscope.replications import _verdict
from engramscope.replications._effects import Estimate, Scale
from engramscope.replications._results import Results
from engramscope.replications._verdict import Tolerance, Verdict

#: (arm, sweep, metric): sweep None is the arm's only one, "" any; metric "" any
Read = tuple[str, str | None, str]


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        value: a number, or plain data.
        text: how it is shown.
        detail: what else was looked at, as plain data.
    """

    value: Any
    text: str
    detail: Mapping[str, Any] = field(default_factory=dict)


class MeasureOptions(BaseModel):
    """The options of a measure, `published` among them; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NumberOptions(MeasureOptions):
    """Options of a measure whose value is a number.

    Attributes:
        published: the number; None where only bounds are published, or nothing.
        within, within_share, at_least, at_most: see `Tolerance`.
    """

    published: float | None = None
    within: float | None = Field(default=None, ge=0)
    within_share: float | None = Field(default=None, ge=0)
    at_least: float | None = None
    at_most: float | None = None

    @property
    def tolerance(self) -> Tolerance:
        """The tolerance."""
        return Tolerance(self.within, self.within_share, self.at_least, self.at_most)

    @property
    def complete(self) -> bool:
        """Whether a published number has its tolerance, and a tolerance its number."""
        return (self.published is not None) == (self.within is not None or self.within_share is not None)


class SweepPart(MeasureOptions):
    """What is read from a sweep.

    Attributes:
        arm: the study.
        sweep: its sweep; None where it has one only.
        metric: name of the metric.
        scale: "effect" in units of the metric, or "recovery" (normalised by the clean–corrupted gap).
    """

    arm: str
    sweep: str | None = None
    metric: str
    scale: Scale = "effect"


class ProfilePart(SweepPart):
    """What is read from a profile over layers.

    Attributes:
        role: the position; None where the sweep has one only.
        layers: first and last layer that are looked at; None for all. Scaled for a model of another depth.
        of: the sweep's own values, or for windows the sums of the single layers over each window.
    """

    role: str | None = None
    layers: tuple[int, int] | None = None
    of: Literal["sliding", "sum"] = "sliding"


class SweepOptions(NumberOptions, SweepPart):
    """Options of a number that is read from a sweep."""


class ProfileOptions(NumberOptions, ProfilePart):
    """Options of a number that is read from a profile over layers."""


Options = TypeVar("Options", bound=MeasureOptions)


class Measure(ABC, Generic[Options]):
    """A kind of published value.

    Class attributes:
        Options: the pydantic class of its options.
        of_model: it is measured on a model. False: it follows from what is printed, for every model alike.

    Args:
        options: its options.
    """

    Options: ClassVar[type[MeasureOptions]]
    of_model: ClassVar[bool] = True

    def __init__(self, options: Options) -> None:
        self.options = options

    def reads(self) -> Sequence[Read]:
        """The sweeps and metrics that it looks at."""
        return ()

    def views(self) -> Sequence[str]:
        """The views that it looks at."""
        return ()

    def arms(self) -> tuple[str, ...]:
        """The arms whose studies it needs."""
        return tuple(dict.fromkeys(arm for arm, _, _ in self.reads()))

    @abstractmethod
    def published(self) -> str:
        """What was published, in words; "" where nothing was."""

    @abstractmethod
    def measure(self, results: Results) -> Measured:
        """Measure it.

        Raises:
            NotMeasuredError: it cannot be measured here.
        """

    @abstractmethod
    def judge(self, measured: Measured) -> Verdict:
        """Compare what was measured on the published model with what was published."""


Numbers = TypeVar("Numbers", bound=NumberOptions)


class NumberMeasure(Measure[Numbers]):
    """A measure whose value is a number, compared within a tolerance."""

    @abstractmethod
    def number(self, results: Results) -> tuple[Estimate, Mapping[str, Any]]:
        """The number and what else is to be recorded."""

    def published(self) -> str:
        """The number with its tolerance, and its bounds."""
        return claim(self.options)

    def measure(self, results: Results) -> Measured:
        """The number, with its interval where there is one."""
        estimate, detail = self.number(results)
        return Measured(estimate.value, with_interval(estimate), {**interval(estimate), **detail})

    def judge(self, measured: Measured) -> Verdict:
        """Within the tolerance, and within every bound."""
        return _verdict.number(float(measured.value), self.options.published, self.options.tolerance)


def claim(options: NumberOptions) -> str:
    """A published number with its tolerance, and published bounds, in words."""
    parts = []
    if options.published is not None:
        parts.append(f"{shown(options.published)} ± {shown(options.tolerance.room(options.published))}")
    if options.at_least is not None:
        parts.append(f"at least {shown(options.at_least)}")
    if options.at_most is not None:
        parts.append(f"at most {shown(options.at_most)}")
    return ", ".join(parts)


def interval(estimate: Estimate) -> dict[str, Any]:
    """The interval and the number of pairs as plain data."""
    known = {"low": estimate.low, "high": estimate.high} if estimate.low == estimate.low else {}
    return {**known, **({"n": estimate.n} if estimate.n else {})}


def with_interval(estimate: Estimate) -> str:
    """A number with its interval, in words."""
    if estimate.low != estimate.low:
        return shown(estimate.value)
    return f"{shown(estimate.value)} [{shown(estimate.low)}, {shown(estimate.high)}]"


def shown(value: float) -> str:
    """A number with three figures."""
    if value and not 0.001 <= abs(value) < 10_000:
        return f"{value:.2e}".replace("-", "−")
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return text.replace("-", "−")


def listed(heads: Sequence[str]) -> str:
    """Heads by name, or "none"."""
    return ", ".join(heads) or "none"

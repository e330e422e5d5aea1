"""What the measures of profiles over layers share."""

from __future__ import annotations

from engramscope.replications._effects import Estimate, peak, profile, scaled, sums_of_singles
from engramscope.replications._measures._base import ProfilePart, Read
from engramscope.replications._results import Results


def read_of(options: ProfilePart) -> tuple[Read, ...]:
    """The sweep that a profile is read from."""
    return ((options.arm, options.sweep, options.metric),)


def profile_of(options: ProfilePart, results: Results) -> dict[int, float]:
    """Layer -> value: of the sweep itself, or of the sums of its single layers.

    Raises:
        NotMeasuredError: there is no such profile.
    """
    arm = results.arm(options.arm)
    table = arm.table(options.sweep, options.metric)
    if options.of == "sliding":
        return profile(table, options.role, options.scale)
    width = int(table.cells["window"].to_numpy().max())
    singles = arm.singles(options.sweep, options.metric)
    return sums_of_singles(profile(singles, options.role, options.scale), width)


def between(options: ProfilePart, results: Results) -> tuple[int, int] | None:
    """The layers that are looked at, in the model at hand."""
    return scaled(options.layers, results.published_layers, results.layers)


def peak_of(options: ProfilePart, results: Results) -> tuple[int, Estimate]:
    """The layer of the highest value, and that value with its interval (which takes the layer as given)."""
    layer, height = peak(profile_of(options, results), between(options, results))
    if options.of == "sum":
        return layer, Estimate(height)
    table = results.arm(options.arm).table(options.sweep, options.metric)
    return layer, table.estimate(table.columns(layer, role=options.role), options.scale)

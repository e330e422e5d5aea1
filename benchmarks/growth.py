"""How the cost of a sweep grows with layers, positions, pairs and cells: straight lines, if nothing is done twice.

One thing is varied at a time: depth of the model, tokens per prompt, pairs, cells. The cells are heads of layer 0, all
positions, in pairs that differ at position 0, so that every run is computed whole and nothing is shared. (A sweep over
*all* layers of a deeper model grows with the square of its depth, because it has more cells too.)
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np

from benchmarks import workload
from benchmarks.cases import GPT2_SMALL, TINY, Case, Sweep
from benchmarks.floor import floor_of
from benchmarks.measure import matmul_rate, seconds_of
from benchmarks.results import Result, Settings
from benchmarks.with_engramscope import Sweeper
from engramscope.models.model import Model

#: what is varied -> the values that it takes, on a machine where a sweep of a second is long enough to be timed
_VALUES = {
    "layers": (2, 4, 6, 8, 10, 12),
    "positions": (8, 16, 24, 32, 40, 48),
    "pairs": (4, 8, 12, 16, 20, 24),
    "cells": (2, 4, 6, 8, 10, 12),
}
_QUICK_VALUES = {"layers": (1, 2, 3), "positions": (4, 6, 8), "pairs": (1, 2, 3), "cells": (1, 2, 4)}


@dataclass(frozen=True)
class Line:
    """Seconds against one variable, and the straight line that fits them best.

    Attributes:
        variable: what was varied.
        values, seconds: what was measured.
        floor_seconds: the floor at the rate of this run.
        intercept, slope: of the line by least squares.
        residual: the largest distance of a point from the line, as a part of the largest time.
    """

    variable: str
    values: tuple[int, ...]
    seconds: tuple[float, ...]
    floor_seconds: tuple[float, ...]
    intercept: float
    slope: float
    residual: float


def run(settings: Settings) -> Result:
    """Time all four lines."""
    device = settings.device
    values = _QUICK_VALUES if settings.quick else _VALUES
    lines = []
    for variable, points in values.items():
        rate = matmul_rate(TINY if settings.quick else GPT2_SMALL, device)
        cases = [_case(variable, value, quick=settings.quick) for value in points]
        seconds = [_seconds(case, settings) for case in cases]
        lines.append(_line(variable, points, seconds, [floor_of(case).flops / rate for case in cases]))
    return Result("growth", "engramscope", details={"lines": [asdict(line) for line in lines]})


def fit(values: tuple[int, ...], seconds: list[float]) -> tuple[float, float, float]:
    """Intercept and slope by least squares, and the largest residual as a part of the largest time."""
    slope, intercept = np.polyfit(values, seconds, 1)
    off = np.abs(np.asarray(seconds) - (intercept + slope * np.asarray(values)))
    return float(intercept), float(slope), float(off.max() / max(seconds))


def _line(variable: str, values: tuple[int, ...], seconds: list[float], floor: list[float]) -> Line:
    return Line(variable, values, tuple(seconds), tuple(floor), *fit(values, seconds))


def _case(variable: str, value: int, *, quick: bool) -> Case:
    sizes = TINY if quick else GPT2_SMALL
    case = Case(
        f"growth-{variable}-{value}",
        "",
        (Sweep("z", each_head=True, layers=(0,), heads=tuple(range(sizes.n_heads))),),
        first_difference=0,
        sizes=sizes,
        n_pairs=3 if quick else 8,
        length=8 if quick else 16,
    )
    if variable == "layers":
        return replace(case, sizes=replace(sizes, n_layers=value))
    if variable == "positions":
        return replace(case, length=value)
    if variable == "pairs":
        return replace(case, n_pairs=value)
    return replace(case, sweeps=(replace(case.sweeps[0], heads=tuple(range(value))),))


def _seconds(case: Case, settings: Settings) -> float:
    """The shortest of three: what others do on the machine can only add to it."""
    hf = workload.make_model(case, settings.device)
    sweeper = Sweeper(case, Model.from_parts(hf, workload.make_tokenizer(case), name="gpt2"), settings)
    sweeper.warm_up()
    return min(seconds_of(sweeper.run, settings.device) for _ in range(max(1, settings.repeats)))

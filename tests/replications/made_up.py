"""Effects tables made up from formulas, so that every measured value is known beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pandas as pd

from engramscope.replications._results import ArmResult, Results

Effect = Callable[[int], float]
CLEAN, CORRUPTED = 5.0, 1.0


def rows(
    sweep: str,
    values: Mapping[tuple[Any, ...], float],
    *,
    metric: str = "logit_diff",
    site: str = "z",
    window: int = 1,
    pairs: Iterable[str] = ("p0", "p1", "p2"),
    seeds: Iterable[int] = (0,),
    clean: float = CLEAN,
    corrupted: float = CORRUPTED,
) -> pd.DataFrame:
    """Rows whose mean effects are `values`: (layer, head, position, role) -> effect; pairs and draws spread around it.

    The spread is antisymmetric, so that it changes no mean.
    """
    pairs, seeds = list(pairs), list(seeds)
    out: list[dict[str, Any]] = []
    for (layer, head, position, role), mean in values.items():
        for at, pair in enumerate(pairs):
            for draw, seed in enumerate(seeds):
                spread = 0.01 * (at - (len(pairs) - 1) / 2) + 0.1 * (draw - (len(seeds) - 1) / 2)
                effect = mean + spread * abs(mean)
                out.append({
                    "study": "made up", "pair": pair, "group": f"g{at}", "corruption": "str", "seed": seed,
                    "direction": "denoise", "site": site, "layer": layer, "head": head, "position": position,
                    "position_role": role, "window": window, "metric": metric, "clean": clean,
                    "corrupted": corrupted, "patched": corrupted + effect, "effect": effect,
                    "recovery": effect / (clean - corrupted), "status": "ok", "sweep": sweep, "cut": False,
                })  # fmt: skip
    return pd.DataFrame(out).astype({"layer": "Int64", "head": "Int64", "position": "Int64"})


def heads(values: Mapping[str, float], **options: Any) -> pd.DataFrame:
    """A sweep of heads, "layer.head" -> effect."""
    cells = {(*(int(part) for part in name.split(".")), None, "all"): value for name, value in values.items()}
    return rows("heads", cells, **options)


def profile(sweep: str, values: Mapping[int, float], role: str = "subject_last", **options: Any) -> pd.DataFrame:
    """A sweep over layers at one role."""
    cells = {(layer, None, None, role): value for layer, value in values.items()}
    return rows(sweep, cells, site="mlp_out", **options)


def results(*, layers: int = 12, published: bool = True, **arms: pd.DataFrame) -> Results:
    """Results of a published model of 12 layers."""
    made = {name: ArmResult(lambda table=table: table) for name, table in arms.items()}
    return Results(made, {}, layers, 12, published, "gpt2")

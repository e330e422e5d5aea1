"""Which studies the comparison is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engramscope.tasks import TASKS
from engramscope.tasks._base import Variant

METRICS = ("logit_diff", "prob", "kl")
WINDOWS = (1, 3, 5, 10)
CORRUPTIONS = ("str", "gaussian")


@dataclass(frozen=True)
class Arm:
    """One study of the comparison.

    Attributes:
        folder: name of its results folder.
        part: "heads" or "windows".
        variant: which tokens are corrupted.
        corruption: "str" or "gaussian".
        study: the study as plain data.
    """

    folder: str
    part: str
    variant: str
    corruption: str
    study: Mapping[str, Any]


@dataclass(frozen=True)
class Request:
    """What is to be compared.

    Attributes:
        task: name of the task.
        model: the `[model]` section.
        limit: number of pairs.
        seed: of everything random.
        draws: of the noise.
        n_layers: of the model, for the windows.
        resamples: of bootstrap and permutation.
        options: of the task, in all variants.
        executor: as in a study file.
    """

    task: str
    model: Mapping[str, Any]
    limit: int
    seed: int
    draws: int
    n_layers: int
    resamples: int
    options: Mapping[str, Any]
    executor: str = "traversal"


def arms_of(request: Request, variants: Sequence[Variant] | None = None) -> list[Arm]:
    """Heads under every variant and corruption, windows of MLPs under the first variant.

    Heads are patched at all positions jointly, windows at the corrupted tokens' last position and at the end, as in
    Zhang & Nanda (2023), Figures 2, 5 and 12 to 30.
    """
    chosen = list(variants if variants is not None else TASKS.get(request.task).all_variants())
    made = []
    for variant in chosen:
        for corruption in CORRUPTIONS:
            heads = [{"name": "heads", "site": "z", "heads": "each"}]
            made.append(_arm(request, variant, corruption, "heads", heads, METRICS))
    for corruption in CORRUPTIONS:
        windows = [
            {"name": f"MLP windows of {width}" if width > 1 else "MLP layers", "site": "mlp_out", "window": width,
             "positions": [_last_of(chosen[0].spans[-1]), "last"]}
            for width in WINDOWS
            if width <= request.n_layers
        ]  # fmt: skip
        made.append(_arm(request, chosen[0], corruption, "windows", windows, METRICS[:2]))
    return made


def _last_of(span: str) -> str:
    """The span's last token; the spans of tasks are of one token each, but for the subject."""
    return f"{span}_last" if span == "subject" else span


def _arm(
    request: Request, variant: Variant, corruption: str, part: str, sweeps: list[dict[str, Any]], metrics: Sequence[str]
) -> Arm:
    spans = list(variant.spans)
    noise = {"draws": request.draws, "span": spans[0] if len(spans) == 1 else spans}
    study = {
        "schema": 1,
        "name": f"{request.task} {part} {variant.name} {corruption}",
        "seed": request.seed,
        "model": dict(request.model),
        "pairs": {"task": request.task, "limit": request.limit, **request.options, **variant.options},
        "corruption": {"method": corruption, **(noise if corruption == "gaussian" else {})},
        "sweep": sweeps,
        "metrics": {"names": list(metrics)},
        "stats": {"resamples": request.resamples},
        "run": {"executor": request.executor},
    }
    return Arm(f"{part}-{variant.name}-{corruption}", part, variant.name, corruption, study)

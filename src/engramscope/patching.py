"""`patch`: one sweep from Python, without a study file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import xarray as xr

from engramscope.engine.executor import Kind
from engramscope.engine.machine import float32_products
from engramscope.locate.cells import cells_of
from engramscope.locate.experiment import Experiment, Parity, Progress, noise_floor, set_up
from engramscope.models import Model, load_model
from engramscope.pairs.pair import PairSet
from engramscope.results.effect_scale import shown
from engramscope.results.frames import to_xarray
from engramscope.results.schema import Frame
from engramscope.results.summary import cell_label, summarise_effects
from engramscope.study_base import ensure_base
from engramscope.study_file import parse_study
from engramscope.study_inputs import check_against_model, inputs_of
from engramscope.study_steps import clusters_of, ensure_parity, recomputed, tokens_of

#: what says how far an estimate is from no effect
_SCALE = ("estimate", "estimate_kind", "direction")


@dataclass(frozen=True)
class PatchResult:
    """Effects and statistics of one sweep.

    Attributes:
        effects: one row per (pair, cell, metric, draw); columns as in `effects.parquet`.
        summary: one row per cell and metric; columns as in `summary.csv`.
        excluded: (pair id, reason) of pairs that do not enter recovery.
        noise_floor: metric -> largest absolute effect of patching runs with their own values.
        parity: how far a random sample of the cells lies from what whole forwards give; None where none was asked for.
    """

    effects: pd.DataFrame
    summary: pd.DataFrame
    excluded: tuple[tuple[str, str], ...]
    noise_floor: Mapping[str, float]
    parity: Parity | None = None

    def to_pandas(self) -> pd.DataFrame:
        """The effects table."""
        return self.effects

    def to_xarray(self) -> xr.Dataset:
        """The effects as labelled arrays over pairs, layers, heads and positions, as they apply.

        With windows: the effects of the windows; the single layers that were patched beside them are in `effects`.
        """
        widest = int(self.effects["window"].to_numpy().argmax())
        return to_xarray(self.effects, self.effects["sweep"].iloc[widest])

    def top(self, count: int = 10, metric: str | None = None) -> pd.DataFrame:
        """The cells that do most among those that are no cut, strongest first.

        When noising, a recovery of 1 means that nothing was lost: the cell with the largest loss, `1 - recovery`, comes
        first.
        """
        table: Frame = self.summary[~self.summary["cut"].astype(bool)]
        table = table[table["metric"] == (metric or self.summary["metric"].iloc[0])]
        sizes = [abs(shown(*row)) for row in zip(*(table[name] for name in _SCALE), strict=True)]
        order = pd.Series(sizes, index=table.index, dtype=float).sort_values(ascending=False, kind="stable")
        order = order.index[:count]
        found = table.loc[order, ["estimate", "low", "high", "p_adjusted", "n", "n_pooled", "detected", "direction"]]
        return found.assign(cell=[cell_label(row) for row in table.loc[order].to_dict("records")]).set_index("cell")

    @property
    def _detected(self) -> int:
        return int(self.summary["detected"].to_numpy(dtype=bool).sum())

    def __repr__(self) -> str:
        cells, found = len(self.summary), self._detected
        left_out = f", {len(self.excluded)} pairs left out of recovery" if self.excluded else ""
        head = f"PatchResult: {cells} cells and metrics, {found} detected{left_out}; strongest:"
        return f"{head}\n{self.top(5).to_string(float_format=lambda value: f'{value:.3g}')}"

    def _repr_html_(self) -> str:
        found = self._detected
        table = self.top(10).to_html(float_format=lambda value: f"{value:.3g}", border=0)
        return f"<p>PatchResult: {len(self.summary)} cells and metrics, {found} detected; strongest:</p>{table}"


def patch(
    model: Model,
    pairs: PairSet,
    site: str,
    *,
    layers: Literal["each"] | Sequence[int] = "each",
    heads: Literal["each", "all"] | Sequence[int] = "all",
    positions: Literal["each", "all", "last"] | Sequence[str] | Sequence[int] = "all",
    window: int = 1,
    direction: Literal["denoise", "noise", "both"] = "denoise",
    severed: Literal["mlp_out", "attn_out"] | None = None,
    receivers: Sequence[str] = (),
    receiver_positions: str | Sequence[str] = "all",
    mlps: Literal["live", "frozen"] = "live",
    corruption: str = "str",
    base: Model | str | None = None,
    options: Mapping[str, Any] | None = None,
    metrics: Sequence[str] = ("logit_diff",),
    cluster: str = "group",
    confidence: float = 0.95,
    family_error: float = 0.01,
    resamples: int = 10_000,
    seed: int = 0,
    executor: Kind = "traversal",
    check: int = 16,
    memory_gb: float = 4.0,
    tf32: bool = False,
    progress: Progress | None = None,
) -> PatchResult:
    """Patch every cell of one sweep in every pair, and test the effects.

    `effect = metric(patched) - metric(run that was patched)`; `recovery = (patched - corrupted) / (clean - corrupted)`,
    0 as corrupted, 1 as clean; estimates over pairs are ratios of means.

    Args:
        model: from `load_model`, or `Model.from_parts` for one that is in memory.
        pairs: the pairs.
        site: a site (`resid_post`, `z`, …) or a module path (`transformer.h.0.mlp.c_fc`, with `{layer}` for a number).
        layers: "each" or a list of layers, a cell each.
        heads: "each", "all" (jointly) or a list, a cell each; for sites with heads.
        positions: "each" token, "all" jointly, "last", or a list, a cell each: indices, or roles and spans by name.
        window: adjacent layers patched jointly.
        direction: "denoise" puts clean values into the corrupted run, "noise" the reverse.
        severed: while a state is restored, what these modules add at its positions stays as in the unpatched run.
        receivers: path patching: what is patched is seen by these only ("9.6.q", "mlp.5", "logits"); see
            `engramscope.locate.paths`.
        receiver_positions: where they receive: "all", "last", or roles and spans by name.
        mlps: with receivers: whether MLPs in between pass the difference on ("live") or not ("frozen").
        corruption: how the corrupted run is made, a name from `engramscope tasks`.
        base: with the corruption "base_model", the model before it was trained, or its name; `site` may then be
            `weights:mlp`, too.
        options: of the corruption.
        metrics: names; the first decides which pairs have a gap.
        cluster: what makes pairs dependent: "group", "pair" or the name of a label.
        confidence: of the intervals.
        family_error: the chance allowed of any false detection among all cells and metrics.
        resamples: of bootstrap and permutation.
        seed: of everything random.
        executor: "traversal", or "reference" for a whole forward of every run; the numbers are the same.
        check: so many cells, drawn at random, are recomputed with whole forwards, each in one pair; 0 for none.
        memory_gb: what may be added to the model, in GiB.
        tf32: let a GPU round the factors of float32 products to TF32.
        progress: called with (what, done, total).

    Raises:
        InputError: every fault of the arguments and the pairs at once.
        CheckError: the recomputed cells differ: nothing that was computed can be trusted.
    """
    sweep: dict[str, Any] = {
        "name": site,
        "site": site,
        "layers": layers if isinstance(layers, str) else list(layers),
        "heads": heads if isinstance(heads, str) else list(heads),
        "positions": positions if isinstance(positions, str) else list(positions),
        "window": window,
        "direction": direction,
        "severed": severed,
    }
    if receivers:
        to = receiver_positions if isinstance(receiver_positions, str) else list(receiver_positions)
        sweep |= {"receivers": list(receivers), "receiver_positions": to, "mlps": mlps}
    study = parse_study(
        {
            "schema": 1,
            "name": "patch",
            "seed": seed,
            "model": {"name": model.name or "model"},
            "pairs": {"task": "given"},
            "corruption": {"method": corruption, **(options or {})},
            "sweep": [sweep],
            "metrics": {"names": list(metrics)},
            "stats": {
                "confidence": confidence,
                "family_error": family_error,
                "resamples": resamples,
                "cluster": cluster,
            },
            "run": {"executor": executor, "check": check, "memory_gb": memory_gb, "tf32": tf32},
        },
        "patch()",
    )
    inputs = inputs_of(study, "", Path(), pairs)
    if isinstance(base, str):
        dtype = str(model.dtype).removeprefix("torch.")
        base = load_model(base, dtype=dtype, device=str(model.device))
    ensure_base(inputs, model, base)
    tokens = tokens_of(inputs, model.tokenizer)
    check_against_model(inputs, tokens, model.anatomy, model.tokenizer, model.offers)
    cells = [cell for part in inputs.sweeps for cell in cells_of(part, model.anatomy, tokens)]
    with float32_products(tf32=tf32):
        experiment = set_up(
            model,
            pairs,
            inputs.corruption,
            corruption,
            study.metrics.names,
            seed=seed,
            executor=executor,
            memory_gb=memory_gb,
            base_model=base,
            progress=progress,
        )
        effects = _run(experiment, cells, progress)
        parity = recomputed(experiment, cells, check, effects) if check else None
        if parity is not None:
            ensure_parity(parity, effects)
        floor = noise_floor(experiment, cells, 8)
    unpooled = {pair for pair, _ in experiment.excluded}
    summary = summarise_effects(
        effects,
        clusters_of(experiment, cluster),
        pooled={prepared.id for prepared in experiment.prepared} - unpooled,
        floor=floor,
        confidence=confidence,
        family_error=family_error,
        resamples=resamples,
        singles=inputs.singles,
        seed=seed,
    )
    return PatchResult(effects, summary, experiment.excluded, floor, parity)


def _run(experiment: Experiment, cells: Sequence[Any], progress: Progress | None) -> pd.DataFrame:
    parts = []
    chunks = experiment.chunks(cells, "patch")
    for number, chunk in enumerate(chunks):
        parts.append(pd.DataFrame(experiment.run(chunk, "patch")))
        if progress:
            progress("patching", number + 1, len(chunks))
    table = pd.concat([part for part in parts if len(part)], ignore_index=True)
    return table.astype({"layer": "Int64", "head": "Int64", "position": "Int64"})

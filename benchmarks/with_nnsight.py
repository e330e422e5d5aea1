"""nnsight on one case: a trace per cell, all pairs in one batch."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Any

import nnsight
import torch

from benchmarks.cases import Case, Cell
from benchmarks.peers import Batch, Rows, measure, prepared
from benchmarks.results import Result, Settings


def run(case: Case, settings: Settings) -> Result:
    """Time the case."""
    return measure("nnsight", _Traced(case, settings), case, settings)


class _Traced:
    batch: Batch
    weights: str
    version = importlib.metadata.version("nnsight")

    def __init__(self, case: Case, settings: Settings) -> None:
        model, _, self.batch, self.weights = prepared(case, settings)
        self._model: Any = nnsight.NNsight(model)
        self._noised = list(case.noised)
        self._width = case.sizes.d_model // case.sizes.n_heads
        self._clean: dict[tuple[str, int], torch.Tensor] = {}

    def cache_clean(self, cells: Sequence[Cell]) -> None:
        model, blocks = self._model, self._model.transformer.h
        sites, layers = {cell.site for cell in cells}, sorted({layer for cell in cells for layer in cell.layers})
        with model.trace(self.batch.clean, use_cache=False):
            kept = {}
            for layer in layers:  # in the order in which the model computes them
                if "resid_pre" in sites:
                    kept["resid_pre", layer] = blocks[layer].input
                if "z" in sites:
                    kept["z", layer] = blocks[layer].attn.c_proj.input
                if "attn_out" in sites:
                    kept["attn_out", layer] = blocks[layer].attn.output[0]
                if "mlp_out" in sites:
                    kept["mlp_out", layer] = blocks[layer].mlp.output
                if "resid_post" in sites:
                    kept["resid_post", layer] = blocks[layer].output
            kept = nnsight.save(kept)
        self._clean = kept

    def forward(self, rows: Rows, cell: Cell | None, *, only_last: bool = False) -> torch.Tensor:
        model, blocks, noised = self._model, self._model.transformer.h, self._noised
        noise, options = rows.noise, {"logits_to_keep": 1} if only_last else {}
        site, layers = ("", ()) if cell is None else (cell.site, cell.layers)
        where = (slice(None), slice(None) if cell is None or cell.position is None else cell.position)
        if cell is not None and cell.head is not None:
            where += (slice(cell.head * self._width, (cell.head + 1) * self._width),)
        clean = {layer: self._rows_of(self._clean[site, layer][where], rows.copies) for layer in layers}
        with model.trace(rows.tokens, use_cache=False, **options):
            if noise is not None:
                model.transformer.wte.output[:, noised] += noise
            for layer in layers:
                if site == "z":
                    blocks[layer].attn.c_proj.input[where] = clean[layer]
                elif site == "resid_pre":
                    blocks[layer].input[where] = clean[layer]
                elif site == "resid_post":
                    blocks[layer].output[where] = clean[layer]
                elif site == "attn_out":
                    blocks[layer].attn.output[0][where] = clean[layer]
                elif site == "mlp_out":
                    blocks[layer].mlp.output[where] = clean[layer]
            last = model.output.logits[:, -1].save()
        return last  # noqa: RET504 - a trace ends before its values can be used

    @staticmethod
    def _rows_of(clean: torch.Tensor, copies: int) -> torch.Tensor:
        return clean if copies == 1 else clean.repeat(copies, *(1 for _ in clean.shape[1:]))

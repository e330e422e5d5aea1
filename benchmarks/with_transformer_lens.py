"""TransformerLens on one case: a hooked forward per cell, as `transformer_lens.patching` does it.

Its helpers (`get_act_patch_attn_head_out_all_pos`, `get_act_patch_resid_pre`, ...) are a loop over cells around
`run_with_hooks` with a hook that copies clean values into the activation in place. Here is the same loop without their
progress bar, for all cases, because there is no helper for windows, for noise, or for a part of the cells.
"""

from __future__ import annotations

import importlib.metadata
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from benchmarks.cases import Case, Cell
from benchmarks.peers import Batch, Rows, measure, prepared
from benchmarks.results import Result, Settings

_HOOKS = {
    "z": "blocks.{}.attn.hook_z",
    "resid_pre": "blocks.{}.hook_resid_pre",
    "resid_post": "blocks.{}.hook_resid_post",
    "attn_out": "blocks.{}.hook_attn_out",
    "mlp_out": "blocks.{}.hook_mlp_out",
}


def run(case: Case, settings: Settings) -> Result:
    """Time the case."""
    return measure("transformer_lens", _Bridge(case, settings), case, settings)


class _Bridge:
    batch: Batch
    weights: str
    version = importlib.metadata.version("transformer-lens")

    def __init__(self, case: Case, settings: Settings) -> None:
        model, tokenizer, self.batch, self.weights = prepared(case, settings)
        with tempfile.TemporaryDirectory() as folder:  # it reads the tokenizer once more, with other options
            tokenizer.save_pretrained(folder)
            tokenizer = type(tokenizer).from_pretrained(folder)
            model.config.save_pretrained(folder)
            self._model: Any = TransformerBridge.boot_transformers(
                "gpt2", hf_model=model, tokenizer=tokenizer, device=settings.device
            )
        self._model.eval()
        self._noised = list(case.noised)
        self._clean: Any = {}

    def cache_clean(self, cells: Sequence[Cell]) -> None:
        names = {_HOOKS[cell.site].format(layer) for cell in cells for layer in cell.layers}
        _, self._clean = self._model.run_with_cache(self.batch.clean, names_filter=lambda name: name in names)

    def forward(self, rows: Rows, cell: Cell | None, *, only_last: bool = False) -> torch.Tensor:
        hooks: list[tuple[str, Callable[..., torch.Tensor]]] = []
        if rows.noise is not None:
            hooks.append(("hook_embed", self._add(rows.noise)))
        if cell is not None:
            names = [_HOOKS[cell.site].format(layer) for layer in cell.layers]
            hooks += [(name, self._put(name, cell, rows)) for name in names]
        options = {"logits_to_keep": 1} if only_last else {}
        return self._model.run_with_hooks(rows.tokens, fwd_hooks=hooks, **options)[:, -1]

    def _add(self, noise: torch.Tensor) -> Callable[..., torch.Tensor]:
        def add(embedded: torch.Tensor, hook: Any) -> torch.Tensor:  # noqa: ARG001 - it is passed by name
            embedded[:, self._noised] += noise
            return embedded

        return add

    def _put(self, name: str, cell: Cell, rows: Rows) -> Callable[..., torch.Tensor]:
        where = (slice(None), slice(None) if cell.position is None else cell.position)
        where += () if cell.head is None else (cell.head,)
        clean = self._clean[name][where]
        clean = clean.repeat(rows.copies, *(1 for _ in clean.shape[1:]))

        def put(value: torch.Tensor, hook: Any) -> torch.Tensor:  # noqa: ARG001
            value[where] = clean
            return value

        return put

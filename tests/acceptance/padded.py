"""Effects by the model itself, with hooks of its own and prompts of unlike lengths padded into one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from engramscope.locate.prepare import Prepared
from engramscope.models import Model
from tests.models.known_paths import KNOWN

Side = Literal["left", "right"]


def padded_effects(model: Model, pairs: Sequence[Prepared], layer: int, span: str, side: Side) -> Tensor:
    """Effect on the logit difference of restoring the residual stream after `layer` at a span, one per pair.

    Args:
        model: the model.
        pairs: pairs of equally long prompts with one correct and one incorrect answer.
        layer: whose output is restored.
        span: where.
        side: on which side shorter prompts are padded.
    """
    longest = max(len(pair.tokens.clean) for pair in pairs)
    before = [longest - len(pair.tokens.clean) if side == "left" else 0 for pair in pairs]
    rows = torch.tensor([row for row, pair in enumerate(pairs) for _ in pair.tokens.clean.spans[span]])
    at = torch.tensor([before[row] + p for row, pair in enumerate(pairs) for p in pair.tokens.clean.spans[span]])
    kept: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        kept.append(value.clone())
        return value

    def restore(value: Tensor) -> Tensor:
        new = value.clone()
        new[rows, at] = kept[0][rows, at]
        return new

    clean = [pair.tokens.clean.ids for pair in pairs]
    corrupted = [pair.tokens.corrupted.ids for pair in pairs]
    _logits(model, clean, side, layer, keep)
    patched, unpatched = (_logits(model, corrupted, side, layer, fn) for fn in (restore, lambda value: value))
    return _logit_diff(patched, pairs) - _logit_diff(unpatched, pairs)


def _logits(
    model: Model, prompts: Sequence[Sequence[int]], side: Side, layer: int, fn: Callable[[Tensor], Tensor]
) -> Tensor:
    """Logits after each prompt [rows, vocab] of one padded batch."""
    longest = max(map(len, prompts))
    real = torch.zeros(len(prompts), longest, dtype=torch.long)
    ids = torch.zeros_like(real)
    for row, prompt in enumerate(prompts):
        place = slice(longest - len(prompt), longest) if side == "left" else slice(0, len(prompt))
        ids[row, place], real[row, place] = torch.tensor(prompt), 1
    block = model.hf.get_submodule(f"{KNOWN[model.name].blocks}.{layer}")
    handle = block.register_forward_hook(lambda _module, _args, out: _with_first(out, fn))
    # without position ids of their own, prompts that are padded on the left would begin at a later position
    position_ids, mask = (real.cumsum(1) - 1).clamp(min=0), _attention_mask(model, real)
    try:
        with torch.no_grad():
            logits = model.hf(input_ids=ids, attention_mask=mask, position_ids=position_ids, use_cache=False).logits
    finally:
        handle.remove()
    last = torch.tensor([longest - 1 if side == "left" else len(prompt) - 1 for prompt in prompts])
    return logits[torch.arange(len(prompts)), last]


def _attention_mask(model: Model, real: Tensor) -> Any:
    """What the model is told about padding.

    Where it takes a mask for scores, it is given one: its own is the lowest float64, which some families cast to
    float32, so that rows which see nothing but padding would be NaN, and with them all rows that look at them.
    """
    if not model.anatomy.attention_interface:
        return real
    at = torch.arange(real.shape[1])
    back = at[:, None] - at
    seen = ((back >= 0) & (real[:, None, :] > 0)) | (back == 0)
    whole = torch.where(seen, 0.0, -1e9).to(model.dtype)[:, None]
    if "sliding_attention" not in (getattr(model.hf.config, "layer_types", None) or ()):
        return whole
    return {
        "full_attention": whole,
        "sliding_attention": whole.masked_fill(back >= model.hf.config.sliding_window, -1e9),
    }


def _with_first(out: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    return fn(out) if isinstance(out, Tensor) else (fn(out[0]), *out[1:])


def _logit_diff(logits: Tensor, pairs: Sequence[Prepared]) -> Tensor:
    found = []
    for row, pair in zip(logits, pairs, strict=True):
        ((correct,),), ((incorrect,),) = pair.tokens.correct, pair.tokens.incorrect
        found.append(row[correct] - row[incorrect])
    return torch.stack(found).double()

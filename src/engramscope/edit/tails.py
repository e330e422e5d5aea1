"""Rows from the position on that is changed in them: what comes before it is computed once."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from engramscope.edit.passes import from_block, logits_where, wide
from engramscope.edit.tokens import Rows
from engramscope.models.hooks import Tap, taps
from engramscope.models.model import Model
from engramscope.models.site import Port

#: rounding that two ways to the same logits may differ by, in units of the last place of the largest
_ULPS, _ULPS_HALF = 4096, 8

Past = tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Tails:
    """Rows whose computation is taken up at one block, and, where the model allows it, at one position.

    Attributes:
        rows: the tokens that are computed [rows, tail]; `mask` is of these tokens.
        hidden: what enters the block there [rows, tail, d_model].
        attended: 1 where a token may be attended to, those before the tail included [rows, past + tail].
        positions: of the tokens in their rows [rows, tail]; None where the rows are whole.
        past: keys and values of what comes before, for each block; None where the rows are whole.
    """

    rows: Rows
    hidden: Float[Tensor, "rows tail d_model"]
    attended: Int[Tensor, "rows all"]
    positions: Int[Tensor, "rows tail"] | None = None
    past: Past | None = None

    def only(self, keep: Bool[Tensor, " rows"]) -> Tails:
        """Some of the rows."""
        rows = self.rows
        past = None
        if self.past is not None:
            past = tuple((k[keep.to(k.device)], v[keep.to(v.device)]) for k, v in self.past)
        return Tails(
            Rows(rows.ids[keep], rows.mask[keep], rows.labels[keep], rows.subject[keep]),
            self.hidden[keep.to(self.hidden.device)], self.attended[keep],
            None if self.positions is None else self.positions[keep], past,
        )  # fmt: skip

    def logits(
        self, model: Model, layer: int, changes: Sequence[tuple[Port, Tap]], where: Bool[Tensor, "rows tail"]
    ) -> Float[Tensor, "chosen vocab"]:
        """Logits at chosen positions, row by row, with changes at ports of the block or after it."""
        with ExitStack() as stack:
            stack.enter_context(from_block(model, layer, self.hidden))
            stack.enter_context(taps(model, changes, copies=False))
            return wide(_logits(model, self, where))


@torch.no_grad()
def tails_of(
    model: Model, layer: int, rows: Rows, hidden: Tensor, where: Bool[Tensor, "rows seq"], logits: Tensor
) -> Tails:
    """Rows from their subject's last token on.

    Causal attention never looks back at a change from before it, so keys and values of the earlier tokens are those of
    the unchanged rows. Whether a model can be taken up like this is found out by doing it: where the logits are not
    those of the whole rows, the rows stay whole.

    Args:
        model: the model.
        layer: the block at which they are taken up.
        rows: the rows, padded on the right.
        hidden: what enters the block [rows, seq, d_model].
        where: positions, at or after the subject's last token, whose logits are known.
        logits: these [chosen, vocab].
    """
    whole = Tails(rows, hidden, rows.mask)
    cut = _cut(model, rows)
    if cut is None:
        return whole
    entered: list[Tensor] = []

    def keep(value: Tensor) -> None:
        entered.append(value.clone())

    port = model.site("resid_pre", layer)
    assert isinstance(port, Port)
    with taps(model, [(port, keep)], copies=False):
        found = wide(_logits(model, cut, _moved(where, rows.subject, cut.rows.ids.shape[1], fill=False)))
    ulps = _ULPS if model.dtype in (torch.float32, torch.float64) else _ULPS_HALF
    allowed = ulps * torch.finfo(model.dtype).eps * float(logits.abs().amax())
    # said so that NaN is no agreement: in float64 some models mask with numbers that are infinite in float32
    if not float((found - logits).abs().amax()) <= allowed:
        return whole
    assert cut.past is not None
    # the blocks below are not called, but the first one's length says how many positions there are
    past = tuple(
        (key[:1, :1, :, :1].expand_as(key), value[:1, :1, :, :1].expand_as(value)) if below < layer else (key, value)
        for below, (key, value) in enumerate(cut.past)
    )
    return replace(cut, hidden=entered[0], past=past)


def _cut(model: Model, rows: Rows) -> Tails | None:
    """Tails with the keys and values before them; None where nothing is gained, or the model has no such cache."""
    before = int(rows.subject.max())
    known = inspect.signature(model.hf.forward).parameters
    if before == 0 or not {"position_ids", "past_key_values"} <= set(known):
        return None
    device, starts = rows.ids.device, rows.subject
    # the tokens before the tails end in the same column
    columns = torch.arange(before, device=device)[None] - (before - starts)[:, None]
    there = columns >= 0
    ids, positions = rows.ids.gather(1, columns.clamp(min=0)), columns.clamp(min=0)
    cache = DynamicCache()
    nowhere = torch.zeros_like(there)
    nowhere[0, 0] = True
    logits_where(model, ids * there, there.long(), nowhere, positions=positions, past=cache)
    past = tuple((key, value) for key, value, *_ in cache if isinstance(key, Tensor) and isinstance(value, Tensor))
    if len(past) != model.anatomy.n_layers or any(key.shape[-2] != before for key, _ in past):
        return None
    width = int((rows.mask.sum(1) - starts).max())
    tail = Rows(
        _moved(rows.ids, starts, width, fill=0), _moved(rows.mask, starts, width, fill=0),
        _moved(rows.labels, starts, width, fill=-100), torch.zeros_like(starts),
    )  # fmt: skip
    attended = torch.cat([there.long(), tail.mask], 1)
    after = starts[:, None] + torch.arange(width, device=device)[None]
    most = rows.ids.shape[1] - 1
    return Tails(tail, torch.empty(0), attended, after.clamp(max=most), past)


def _moved(values: Tensor, starts: Int[Tensor, " rows"], width: int, *, fill: int) -> Tensor:
    """Columns from each row's start on [rows, width], filled up where a row has ended."""
    columns = starts[:, None] + torch.arange(width, device=values.device)[None]
    inside = columns < values.shape[1]
    return torch.where(inside, values.gather(1, columns.clamp(max=values.shape[1] - 1)), fill)


def _logits(model: Model, tails: Tails, where: Bool[Tensor, "rows tail"]) -> Tensor:
    # the cache grows in a forward, so each one is given its own
    past = None if tails.past is None else DynamicCache(tails.past)
    return logits_where(model, tails.rows.ids, tails.attended, where, positions=tails.positions, past=past)

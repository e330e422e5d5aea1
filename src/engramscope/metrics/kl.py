"""Kullback–Leibler divergence of the next-token distribution from that of the clean run."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from engramscope.metrics._base import Metric, Target
from engramscope.metrics._tokens import next_token_logits, widened

#: numbers of a block: its copies in float64 take 8 bytes each
_ELEMENTS = 2**21


class KL(Metric):
    """`KL(P_clean ‖ P) = Σ_v P_clean(v) [ln P_clean(v) - ln P(v)]`, over the whole vocabulary, after the prompt.

    Unit: nats (natural log). Range: [0, inf). *Lower* is better: 0 exactly where the run answers as the clean run does,
    so the effect of a helpful patch is negative in `effect = metric(patched) - metric(baseline)`, and recovery is still
    1 for a run that is as good as the clean one. It looks at no answer; it sees every change of the distribution.

    Not signed: it is a distance from the clean run, so when noising its effect cannot be negative, and when denoising
    its sign is not a coin's toss either. A test by sign flips would find something in models that know nothing, so
    effects on it are described and not tested.

    Tokens that the clean run gives no probability contribute 0; a token that the clean run allows and this run does not
    (logit -inf) gives inf. Computed in float64 where the device has it, because the divergence of
    nearby distributions is of second order in their difference and drowns in float32 rounding; a result that rounds
    below 0 is set to 0.

    Source: Zhang & Nanda, arXiv 2309.16042, §2.
    """

    unit: ClassVar[str] = "nats"
    range: ClassVar[tuple[float, float]] = (0.0, math.inf)
    higher_is_better: ClassVar[bool] = False
    needs_clean: ClassVar[bool] = True
    single_token: ClassVar[bool] = False
    signed: ClassVar[bool] = False

    def score(self, logits: Float[Tensor, "rows positions vocab"], targets: list[Target]) -> Float[Tensor, " rows"]:
        """Score every row.

        Raises:
            ValueError: wrong shape, or a target without the clean run's logits over the same vocabulary.
        """
        table = next_token_logits(logits, targets)
        out = torch.empty(len(targets), dtype=widened(table[:0]).dtype, device=table.device)
        at_once = max(1, _ELEMENTS // max(1, table.shape[1]))
        for start in range(0, len(targets), at_once):
            rows = table[start : start + at_once]
            # the runs of a pair share the logits of one clean run
            distinct: dict[int, Tensor] = {}
            which = []
            for target, row in zip(targets[start : start + at_once], rows, strict=True):
                clean = _clean_logits(target, row)
                distinct.setdefault(id(clean), clean)
                which.append(id(clean))
            place = {key: number for number, key in enumerate(distinct)}
            clean_rows = torch.stack([clean.to(table.device) for clean in distinct.values()])
            index = torch.tensor([place[key] for key in which], device=table.device)
            out[start : start + at_once] = divergence(clean_rows, rows, index)
        return out


def divergence(
    clean: Float[Tensor, "distinct vocab"], other: Float[Tensor, "rows vocab"], which: Int[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """`KL(softmax(clean[which]) ‖ softmax(other))` in nats, at least 0; NaN in either gives NaN."""
    wide = torch.float64 if other.device.type != "mps" else torch.float32  # MPS has no float64
    log_p = torch.log_softmax(clean.to(wide), dim=1)
    p = log_p.exp()
    difference = log_p[which] - torch.log_softmax(other.to(wide), dim=1)
    weight = p[which]
    # 0 · (−inf − …) is NaN, its limit is 0
    return torch.where(weight == 0, torch.zeros_like(weight), weight * difference).sum(dim=1).clamp(min=0.0)


def _clean_logits(target: Target, row: Float[Tensor, " vocab"]) -> Float[Tensor, " vocab"]:
    if target.clean_logits is None:
        raise ValueError("kl needs the clean run's logits in Target.clean_logits")
    if target.clean_logits.shape != row.shape:
        raise ValueError(f"clean logits {list(target.clean_logits.shape)} and logits {list(row.shape)} differ in shape")
    return target.clean_logits


COMPONENT = KL

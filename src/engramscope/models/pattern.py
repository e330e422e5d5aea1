"""Where the attention weights can be read and replaced, verified by replacing them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from engramscope.models.heads import HeadLayout
from engramscope.models.hooks import Hook
from engramscope.models.interface import pattern_hooks
from engramscope.models.parts import Parts
from engramscope.models.probe import Recording, eps_of, random_tokens, reset_rows, run_blocks
from engramscope.models.site import AttentionPattern, Port

_SEQ = 3
#: softmax is computed in float32 whatever the type of the model
_SOFTMAX_EPS = torch.finfo(torch.float32).eps


def find_patterns(
    hf: Any, parts: Parts, layouts: Sequence[HeadLayout], n_heads: int
) -> tuple[AttentionPattern | None, ...]:
    """Access to each block's attention weights; None where no module sees them or they do not act head by head.

    A place is accepted only if other weights of one head change that head's columns of `z` and no other's.
    """
    candidates = [_candidate(hf, parts, layer, n_heads) for layer in range(len(parts.blocks))]
    tested = [layer for layer, access in enumerate(candidates) if access is not None and layouts[layer].out is not None]
    z = _probe(hf, parts, layouts, [access for access in candidates if access is not None], tested, n_heads)
    return tuple(
        access if layer in z and _acts_per_head(z[layer], must_act=layouts[layer].verified) else None
        for layer, access in enumerate(candidates)
    )


def is_pattern(value: Tensor | None, recording: Recording, n_heads: int) -> bool:
    """Whether a tensor [batch, n_heads, query, key] is causal, not negative, and has rows that sum to 1."""
    if value is None or not value.is_floating_point():
        return False
    if value.shape != (recording.batch, n_heads, recording.seq, recording.seq):
        return False
    future = torch.ones(recording.seq, recording.seq, dtype=torch.bool, device=value.device).triu(1)
    sums = value.double().sum(dim=-1)
    return (
        bool((value >= 0).all()) and bool((value[..., future] == 0).all())
        and bool(((sums - 1).abs() <= 8 * max(eps_of(value), _SOFTMAX_EPS)).all())
    )  # fmt: skip


def _candidate(hf: nn.Module, parts: Parts, layer: int, n_heads: int) -> AttentionPattern | None:
    attention = parts.attention[layer]
    if attention is None:
        return None
    module = hf.get_submodule(attention)
    if parts.interface[layer]:
        return AttentionPattern(layer, module)
    for path in parts.recording.calls:
        call = parts.recording.once(path)
        if path.startswith(f"{attention}.") and call and is_pattern(call.output, parts.recording, n_heads):
            return AttentionPattern(layer, module, Port(path, hf.get_submodule(path), "output"))
    return None


def _probe(
    hf: Any,
    parts: Parts,
    layouts: Sequence[HeadLayout],
    accesses: Sequence[AttentionPattern],
    tested: Sequence[int],
    n_heads: int,
) -> dict[int, Tensor]:
    """`z` [1 + n_heads, seq, n_heads, d_head] of each tested layer; in row 1 + h the weights of head h are others."""
    rows, z = 1 + n_heads, {}
    generator = torch.Generator().manual_seed(4)
    hooks = reset_rows([hf.get_submodule(path) for path in parts.blocks])
    interface: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = []
    for access in accesses:
        if access.dropout is None:
            interface.append((access.attention, _swap_weights))
        else:
            hooks.append(Hook(access.dropout.module, "output", _swap_weights))
    for layer in tested:
        layout = layouts[layer]
        for path in {projection.path for projection in (layout.q, layout.k, layout.v) if projection is not None}:
            like = parts.recording.output(path)
            assert like is not None
            noise = torch.randn((1, _SEQ, like.shape[-1]), generator=generator).to(like)
            hooks.append(Hook(hf.get_submodule(path), "output", _overwrite(noise)))
        assert layout.out is not None
        hooks.append(Hook(hf.get_submodule(layout.out), "input", _keep(z, layer)))
    with ExitStack() as stack:
        if interface:
            stack.enter_context(pattern_hooks(hf, interface))
        run_blocks(hf, random_tokens(hf, 1, _SEQ).expand(rows, -1), hooks)
    return {layer: value.reshape(rows, _SEQ, n_heads, -1) for layer, value in z.items()}


def _swap_weights(weights: Tensor) -> Tensor:
    new = weights.clone()
    for head in range(weights.shape[1]):
        # the query at the last position looks at nothing but position 0, or, if it did already, at position 1
        new[1 + head, head, -1] = 0
        new[1 + head, head, -1, 0 if float(weights[0, head, -1, 0]) < 0.5 else 1] = 1
    return new


def _acts_per_head(z: Tensor, *, must_act: bool) -> bool:
    change = (z[1:] - z[:1]).abs().amax(dim=-1)  # [row, seq, head]
    tolerance = max(1e-4, 4 * eps_of(z)) * z.abs().amax()
    own = torch.diagonal(change[:, -1], dim1=0, dim2=1)
    others = change.clone()
    others[:, -1].fill_diagonal_(0)
    return bool((others <= tolerance).all()) and (not must_act or bool((own > tolerance).all()))


def _overwrite(value: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda old: value.to(old).expand(old.shape[0], -1, -1).clone()


def _keep(store: dict[int, Tensor], layer: int) -> Callable[[Tensor], None]:
    def keep(value: Tensor) -> None:
        store[layer] = value.clone()

    return keep

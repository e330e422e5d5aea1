"""Per-head sites: which columns of which projection are the query, key and value of which head.

Nothing is assumed about a family. The outputs of all projections inside an attention module are replaced by random
numbers, cut into chunks of `d_head` columns, and one chunk at a time is rolled by one column at the middle one of three
positions. What then changes in `z` says what the chunk is:

* a query changes its own head, at its own position only;
* a value changes the heads of its group at its own and later positions, by a multiple of its own change;
* a key changes them, too, but not by such a multiple.

Rolling keeps mean and size of a chunk, so a norm over all heads (OLMo 2) lets no head leak into another; and random
numbers make the outcome independent of the weights, so that heads with zero weights are recognised as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from engramscope.models.hooks import Hook
from engramscope.models.parts import Parts
from engramscope.models.probe import Recording, eps_of, forward, linears, random_tokens, reset_rows

_SEQ = 3
#: sizes of the random numbers; large ones saturate the softmax of models that do not scale their scores
_SIZES = (1.0, 0.3, 1.0, 0.1)

Kind = Literal["q", "k", "v"]


@dataclass(frozen=True, slots=True)
class Projection:
    """Columns of one projection's output that hold one of q, k, v.

    Attributes:
        path: path of the projection.
        columns: int64 [heads, d_head].
    """

    path: str
    columns: Tensor


@dataclass(frozen=True, slots=True)
class HeadLayout:
    """What is known of one attention module.

    Attributes:
        out: path of the output projection, whose input is `z`; None where there is none.
        d_head: columns of `z` per head; 0 where there is no `z`.
        q, k, v: where they are; None where it could not be verified.
    """

    out: str | None
    d_head: int
    q: Projection | None = None
    k: Projection | None = None
    v: Projection | None = None

    @property
    def verified(self) -> bool:
        """Whether the layout of q, k and v was found."""
        return self.q is not None and self.k is not None and self.v is not None


@dataclass(frozen=True, slots=True)
class _Chunk:
    path: str
    start: int


def find_layouts(hf: Any, parts: Parts, n_heads: int) -> tuple[HeadLayout, ...]:
    """The head layout of every block's attention, verified by probe runs.

    Args:
        hf: the model.
        parts: its parts.
        n_heads: number of query heads.
    """
    outs = [output_projection(hf, parts, layer, n_heads) for layer in range(len(parts.blocks))]
    layouts = [HeadLayout(path, width // n_heads) for path, width in outs]
    for attempt, size in enumerate(_SIZES):
        open_layers = [layer for layer, layout in enumerate(layouts) if layout.out and not layout.verified]
        if not open_layers:
            break
        for layer, layout in _probe(hf, parts, layouts, open_layers, n_heads, size, attempt).items():
            layouts[layer] = layout
    return tuple(layouts)


def output_projection(hf: nn.Module, parts: Parts, layer: int, n_heads: int) -> tuple[str | None, int]:
    """Path and input width of the last matrix that is applied inside the attention, if its input can be heads."""
    attention, recording = parts.attention[layer], parts.recording
    block_input = recording.input(parts.blocks[layer])
    if attention is None or block_input is None:
        return None, 0
    for path in reversed(linears(hf, attention, recording)):
        given, returned = recording.input(path), recording.output(path)
        if given is None or returned is None:
            continue
        if returned.shape[-1] == block_input.shape[-1] and given.shape[-1] % n_heads == 0:
            return path, given.shape[-1]
        return None, 0
    return None, 0


def _probe(
    hf: Any, parts: Parts, layouts: Sequence[HeadLayout], layers: Sequence[int], n_heads: int, size: float, seed: int
) -> dict[int, HeadLayout]:
    """One forward in which every chunk of every open layer has a row of its own."""
    chunks = {layer: chunks_of(hf, parts, layer, layouts[layer]) for layer in layers}
    rows = 1 + max(len(own) for own in chunks.values())
    generator = torch.Generator().manual_seed(seed)
    hooks = reset_rows([hf.get_submodule(path) for path in parts.blocks])
    z: dict[int, Tensor] = {}
    written: dict[str, Tensor] = {}
    for layer in layers:
        out = layouts[layer].out
        assert out is not None
        for path in dict.fromkeys(chunk.path for chunk in chunks[layer]):
            value = _noise(parts.recording, path, rows, size, generator)
            for row, chunk in enumerate(chunks[layer], start=1):
                if chunk.path == path:
                    _roll(value[row, 1], chunk.start, layouts[layer].d_head)
            written[path] = value
            hooks.append(Hook(hf.get_submodule(path), "output", _overwrite(value)))
        hooks.append(Hook(hf.get_submodule(out), "input", _keep(z, layer)))
    forward(hf, random_tokens(hf, rows, _SEQ), hooks)
    return {
        layer: _layout(layouts[layer], chunks[layer], z[layer].reshape(rows, _SEQ, n_heads, -1), written)
        for layer in layers
    }


def chunks_of(hf: nn.Module, parts: Parts, layer: int, layout: HeadLayout) -> list[_Chunk]:
    """Every chunk of `d_head` columns of every projection that comes before the output projection."""
    attention = parts.attention[layer]
    assert attention is not None
    found: list[_Chunk] = []
    for path in linears(hf, attention, parts.recording):
        value = parts.recording.output(path)
        if path == layout.out or value is None or value.shape[-1] % layout.d_head != 0:
            continue
        found += [_Chunk(path, start) for start in range(0, value.shape[-1], layout.d_head)]
    return found


def _layout(layout: HeadLayout, chunks: Sequence[_Chunk], z: Tensor, written: dict[str, Tensor]) -> HeadLayout:
    """Put the chunks together, if each head has exactly one query and each group exactly one key and one value."""
    found: dict[Kind, dict[tuple[int, ...], list[_Chunk]]] = {"q": {}, "k": {}, "v": {}}
    for row, chunk in enumerate(chunks, start=1):
        value = written[chunk.path][:, 1, chunk.start : chunk.start + layout.d_head]
        kind, heads = classify(z[row] - z[0], (value[row] - value[0]).to(z), scale=float(z[0].abs().amax()))
        if kind is None:
            return layout
        found[kind].setdefault(heads, []).append(chunk)
    n_heads = z.shape[2]
    groups = sorted(found["v"])
    width = n_heads // max(1, len(groups))
    expected = [tuple(range(start, start + width)) for start in range(0, n_heads, width)]
    if groups != expected or sorted(found["k"]) != expected or sorted(found["q"]) != [(h,) for h in range(n_heads)]:
        return layout
    projections = {kind: _projection(found[kind], layout.d_head) for kind in found}
    if any(projection is None for projection in projections.values()):
        return layout
    return HeadLayout(layout.out, layout.d_head, **projections)


def classify(change: Tensor, cause: Tensor, *, scale: float) -> tuple[Kind | None, tuple[int, ...]]:
    """What a chunk is, from what it changed.

    Args:
        change: change of `z` [3, n_heads, d_head].
        cause: change of the chunk [d_head], at position 1.
        scale: size of `z`.

    Returns:
        "q", "k" or "v" with the heads that it changed; None where it is none of them.
    """
    tolerance = max(1e-4, 4 * eps_of(change)) * scale
    moved = change.abs().amax(dim=-1) > tolerance  # [3, n_heads]
    heads = tuple(torch.nonzero(moved.any(dim=0)).flatten().tolist())
    if not heads or bool(moved[0].any()):
        return None, ()
    if not bool(moved[2].any()):
        return ("q", heads) if len(heads) == 1 else (None, ())
    later = change[2, list(heads)].double()  # [heads, d_head]
    direction = cause.double()
    share = later @ direction / direction.pow(2).sum()
    rest = (later - share[:, None] * direction).abs().amax()
    if bool(rest <= tolerance) and bool((share > 0).all()):
        return "v", heads
    return "k", heads


def _projection(by_heads: dict[tuple[int, ...], list[_Chunk]], d_head: int) -> Projection | None:
    if any(len(chunks) != 1 for chunks in by_heads.values()):
        return None
    ordered = [by_heads[heads][0] for heads in sorted(by_heads)]
    if len({chunk.path for chunk in ordered}) != 1:
        return None
    columns = torch.tensor([chunk.start for chunk in ordered])[:, None] + torch.arange(d_head)[None, :]
    return Projection(ordered[0].path, columns)


def _noise(recording: Recording, path: str, rows: int, size: float, generator: torch.Generator) -> Tensor:
    like = recording.output(path)
    assert like is not None
    noise = torch.randn((1, _SEQ, like.shape[-1]), generator=generator) * size
    return noise.to(like).expand(rows, -1, -1).clone()


def _roll(position: Tensor, start: int, d_head: int) -> None:
    position[start : start + d_head] = position[start : start + d_head].roll(1)


def _overwrite(value: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda old: value.to(old).view(old.shape)


def _keep(store: dict[int, Tensor], layer: int) -> Callable[[Tensor], None]:
    def keep(value: Tensor) -> None:
        store[layer] = value.clone()

    return keep

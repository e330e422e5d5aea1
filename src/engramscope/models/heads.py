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
from engramscope.models.probe import Recording, eps_of, linears, random_tokens, reset_rows, run_blocks

_SEQ = 3
#: sizes of the random numbers; large ones saturate the softmax of models that do not scale their scores
_SIZES = (1.0, 1.5, 0.3, 1.0, 1.5, 2.0, 0.1, 1.0)

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


@dataclass(frozen=True, slots=True)
class Evidence:
    """What rolling a chunk has changed in all draws so far.

    Attributes:
        moved: whether head h of `z` changed at position t, bool [3, n_heads].
        multiple: every change at the last position was a positive multiple of the chunk's own change.
    """

    moved: Tensor
    multiple: bool

    def with_more(self, other: Evidence) -> Evidence:
        """Both draws together: a small change that one draw cannot tell from rounding, another one shows."""
        return Evidence(self.moved | other.moved, self.multiple and other.multiple)


def find_layouts(hf: Any, parts: Parts, n_heads: int) -> tuple[HeadLayout, ...]:
    """The head layout of every block's attention, verified by probe runs.

    Args:
        hf: the model.
        parts: its parts.
        n_heads: number of query heads.
    """
    outs = [output_projection(hf, parts, layer, n_heads) for layer in range(len(parts.blocks))]
    layouts = [HeadLayout(path, width // n_heads) for path, width in outs]
    chunks = {layer: chunks_of(hf, parts, layer, layout) for layer, layout in enumerate(layouts) if layout.out}
    evidence: dict[int, list[Evidence]] = {}
    generator = torch.Generator().manual_seed(0)
    for size in _SIZES:
        open_chunks = {layer: own for layer, own in chunks.items() if own and not layouts[layer].verified}
        if not open_chunks:
            break
        for layer, seen in _probe(hf, parts, layouts, open_chunks, n_heads, size, generator).items():
            before = evidence.get(layer, seen)
            evidence[layer] = [old.with_more(new) for old, new in zip(before, seen, strict=True)]
            layouts[layer] = _layout(layouts[layer], chunks[layer], evidence[layer], n_heads)
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
    hf: Any,
    parts: Parts,
    layouts: Sequence[HeadLayout],
    chunks: dict[int, list[_Chunk]],
    n_heads: int,
    size: float,
    generator: torch.Generator,
) -> dict[int, list[Evidence]]:
    """One forward in which every chunk of every open layer has a row of its own; what each chunk changed."""
    rows = 1 + max(len(own) for own in chunks.values())
    hooks = reset_rows([hf.get_submodule(path) for path in parts.blocks])
    z: dict[int, Tensor] = {}
    written: dict[str, Tensor] = {}
    for layer, own in chunks.items():
        out, width = layouts[layer].out, layouts[layer].d_head
        assert out is not None
        for path in dict.fromkeys(chunk.path for chunk in own):
            value = _noise(parts.recording, path, rows, size, generator)
            for row, chunk in enumerate(own, start=1):
                if chunk.path == path:
                    _roll(value[row, 1], chunk.start, width)
            written[path] = value
            hooks.append(Hook(hf.get_submodule(path), "output", _overwrite(value)))
        hooks.append(Hook(hf.get_submodule(out), "input", _keep(z, layer)))
    run_blocks(hf, random_tokens(hf, rows, _SEQ), hooks)
    found: dict[int, list[Evidence]] = {}
    for layer, own in chunks.items():
        values, width = z[layer].reshape(rows, _SEQ, n_heads, -1), layouts[layer].d_head
        found[layer] = []
        for row, chunk in enumerate(own, start=1):
            put = written[chunk.path][:, 1, chunk.start : chunk.start + width]
            found[layer].append(observe(values[row] - values[0], put[row] - put[0], float(values[0].abs().amax())))
    return found


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


def observe(change: Tensor, cause: Tensor, scale: float) -> Evidence:
    """What one rolled chunk changed.

    Args:
        change: change of `z` [3, n_heads, d_head].
        cause: change of the chunk [d_head], at position 1.
        scale: size of `z`.
    """
    tolerance = max(1e-4, 4 * eps_of(change)) * scale
    moved = change.abs().amax(dim=-1) > tolerance  # [3, n_heads]
    later, direction = change[2].double(), cause.to(change.device).double()  # [n_heads, d_head], [d_head]
    share = later @ direction / direction.pow(2).sum().clamp(min=1e-30)
    rest = (later - share[:, None] * direction).abs().amax(dim=-1)
    multiple = bool(((rest <= tolerance) & (share > 0))[moved[2]].all())
    return Evidence(moved, multiple)


def classify(evidence: Evidence) -> tuple[Kind | None, tuple[int, ...]]:
    """What a chunk is: "q", "k" or "v" with the heads that it changed; None where it is none of them."""
    moved = evidence.moved
    heads = tuple(torch.nonzero(moved.any(dim=0)).flatten().tolist())
    if not heads or bool(moved[0].any()):
        return None, ()
    if not bool(moved[2].any()):
        return ("q", heads) if len(heads) == 1 else (None, ())
    return ("v" if evidence.multiple else "k"), heads


def _layout(layout: HeadLayout, chunks: Sequence[_Chunk], evidence: Sequence[Evidence], n_heads: int) -> HeadLayout:
    """Put the chunks together, if each head has exactly one query and each group exactly one key and one value."""
    found: dict[Kind, dict[tuple[int, ...], list[_Chunk]]] = {"q": {}, "k": {}, "v": {}}
    for chunk, seen in zip(chunks, evidence, strict=True):
        kind, heads = classify(seen)
        if kind is None:
            return layout
        found[kind].setdefault(heads, []).append(chunk)
    groups = sorted(found["v"])
    width = n_heads // max(1, len(groups))
    expected = [tuple(range(start, start + width)) for start in range(0, n_heads, width)]
    if groups != expected or sorted(found["k"]) != expected or sorted(found["q"]) != [(h,) for h in range(n_heads)]:
        return layout
    q, k, v = (_projection(found[kind], layout.d_head) for kind in ("q", "k", "v"))
    if q is None or k is None or v is None:
        return layout
    return HeadLayout(layout.out, layout.d_head, q, k, v)


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

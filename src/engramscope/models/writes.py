"""The two write ports of a block: the module outputs that attention and the MLP add to the residual stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engramscope.models.hooks import Hook
from engramscope.models.parts import Parts
from engramscope.models.probe import ROWS, SEQ, Recording, below, close, eps_of, random_tokens, record, reset_rows

#: pairs of candidates that are tried for each block before it is given up
MAX_TRIES = 12


@dataclass(frozen=True, slots=True)
class Writes:
    """What a block adds to the residual stream.

    Attributes:
        attn: path of the module whose output is what attention adds.
        mlp: path of the module whose output is what the MLP adds.
        parallel: the MLP does not read what attention added.
    """

    attn: str
    mlp: str
    parallel: bool


def find_writes(hf: Any, parts: Parts) -> tuple[Writes | None, ...]:
    """For each block, the outermost pair of module outputs (a, m) with `resid_post = resid_pre + a + m`.

    A pair is accepted only if the equation still holds, in the block's own output, when something is added to a, to m,
    and to both: so it is what is written that was found, and not merely something that is equal to it.

    Returns:
        A pair per block; None where there is none.
    """
    choices = [_valid_pairs(parts, layer) for layer in range(len(parts.blocks))]
    found: list[Writes | None] = [None] * len(parts.blocks)
    open_layers = set(range(len(choices)))
    for _ in range(MAX_TRIES):
        tried = {layer: pair for layer in open_layers if (pair := next(choices[layer], None)) is not None}
        if not tried:
            break
        for layer, writes in _verified(hf, parts, tried).items():
            found[layer] = writes
        open_layers = {layer for layer in tried if found[layer] is None}
    return tuple(found)


def adds_up(pre: Tensor, attn: Tensor, mlp: Tensor, post: Tensor) -> bool:
    """Whether `pre + attn + mlp == post` up to the rounding of two additions, element by element."""
    error, bound = additivity_error(pre, attn, mlp, post)
    return bool((error <= bound).all())


def additivity_error(pre: Tensor, attn: Tensor, mlp: Tensor, post: Tensor) -> tuple[Tensor, Tensor]:
    """`|pre + attn + mlp - post|`, and the rounding that two additions may cause, element by element (float64)."""
    terms = [value.double() for value in (pre, attn, mlp)]
    size = sum((term.abs() for term in terms), torch.zeros_like(terms[0]))
    return (sum(terms, -post.double())).abs(), 4 * eps_of(post) * size + 1e-30


def _valid_pairs(parts: Parts, layer: int) -> Iterator[tuple[str, str]]:
    """Pairs for which the values of the recorded forward add up, the outermost first."""
    recording, block, attention = parts.recording, parts.blocks[layer], parts.attention[layer]
    pre, post = recording.input(block), recording.output(block)
    if attention is None or pre is None or post is None:
        return
    values = {path: value for path, value in _outputs(recording, block).items() if value.shape == pre.shape}
    own = [path for path in values if below(path, attention) or below(attention, path)]
    fed = _fed_by(recording, values, own)
    others = [path for path in values if path not in own]
    for attn in [*_outermost(own, recording), *fed]:
        for mlp in _outermost([path for path in others if path != attn], recording):
            if adds_up(pre, values[attn], values[mlp], post):
                yield attn, mlp


def _outputs(recording: Recording, block: str) -> dict[str, Tensor]:
    inside = (path for path in recording.calls if path.startswith(f"{block}."))
    return {path: value for path in inside if (value := recording.output(path)) is not None}


def _fed_by(recording: Recording, values: dict[str, Tensor], own: Sequence[str]) -> list[str]:
    """Modules outside the attention whose input is what attention returned (two steps): a norm, a dropout."""
    sources, found = list(own), []
    for _ in range(2):
        step = [
            path
            for path in values
            if path not in sources and (given := recording.input(path)) is not None
            and any(close(given, values[source]) for source in sources if given.shape == values[source].shape)
        ]  # fmt: skip
        found += step
        sources += step
    return found


def _outermost(paths: Sequence[str], recording: Recording) -> list[str]:
    return sorted(paths, key=lambda path: (path.count("."), recording.calls[path][0].start))


def _verified(hf: Any, parts: Parts, pairs: dict[int, tuple[str, str]]) -> dict[int, Writes | None]:
    """Add something to the ports of every open block, in rows of their own, and look at the blocks' outputs."""
    generator = torch.Generator().manual_seed(2)
    sizes = {layer: _size(parts.recording.input(parts.blocks[layer])) for layer in pairs}
    hooks = reset_rows([hf.get_submodule(path) for path in parts.blocks])
    for layer, (attn, mlp) in pairs.items():
        # row 1: attention's port, row 2: both
        hooks.append(Hook(hf.get_submodule(attn), "output", _adder([1, 2], sizes[layer], generator)))
        hooks.append(Hook(hf.get_submodule(mlp), "output", _adder([2], sizes[layer], generator)))
    tokens = random_tokens(hf, ROWS, SEQ, seed=3)
    recording = record(hf, tokens, hooks)
    return {layer: _judge(hf, recording, parts, layer, *pair) for layer, pair in pairs.items()}


def _adder(rows: list[int], size: float, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    def add(value: Tensor) -> Tensor:
        new = value.clone().view(ROWS, SEQ, -1)
        noise = torch.randn((len(rows), SEQ, new.shape[-1]), generator=generator) * size
        new[rows] += noise.to(new.device, new.dtype)
        return new.view(value.shape)

    return add


def _size(value: Tensor | None) -> float:
    return 1.0 if value is None else max(1e-3, float(value.float().pow(2).mean().sqrt()))


def _judge(hf: nn.Module, recording: Recording, parts: Parts, layer: int, attn: str, mlp: str) -> Writes | None:
    block, attention = parts.blocks[layer], parts.attention[layer]
    values = [recording.input(block), recording.output(attn), recording.output(mlp), recording.output(block)]
    if any(value is None for value in values) or attention is None:
        return None
    pre, a, m, post = (value for value in values if value is not None)
    if not adds_up(pre, a, m, post):
        return None
    downstream = [
        path
        for path in recording.calls
        if path.startswith(f"{block}.") and not below(path, attention) and path != attn
        and any(True for _ in hf.get_submodule(path).parameters())
        and (given := recording.input(path)) is not None and not close(given[1], given[0])
    ]  # fmt: skip
    ancestors = [path for path in downstream if below(attention, path) or below(attn, path)]
    return Writes(attn, mlp, parallel=len(downstream) == len(ancestors))

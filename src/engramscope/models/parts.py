"""The large parts of a model: embedding, blocks, attention modules, final norm and head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engramscope.errors import ModelError
from engramscope.models.interface import attention_configs, eager_attention_of, pattern_hooks
from engramscope.models.probe import (
    ROWS,
    SEQ,
    Recording,
    below,
    close,
    eps_of,
    random_tokens,
    record,
    reset_rows,
)


@dataclass(frozen=True)
class Parts:
    """Paths of a model's large parts, and the recorded forward that they were found in.

    Attributes:
        embed, final_norm, head: paths; `final_norm` is None where no module's output is the head's input.
        blocks: path of each block.
        attention: path of each block's attention module; None where nothing in the block mixes positions.
        interface: per block, whether its attention goes through the attention interface of transformers.
        query_heads: number of query heads as the attention interface saw them; None without it.
        recording: a forward of `ROWS` random rows in which each block was given row 0's input in all rows, with
            something added at position `SEQ - 2` in the rows after row 0.
    """

    embed: str
    final_norm: str | None
    head: str
    blocks: tuple[str, ...]
    attention: tuple[str | None, ...]
    interface: tuple[bool, ...]
    query_heads: int | None
    recording: Recording


def find_parts(hf: Any) -> Parts:
    """Find the large parts by the module graph and a probe run.

    Raises:
        ModelError: no stack of equal blocks, or no head; not the shape of a causal language model.
    """
    blocks = find_blocks(hf)
    modules = [hf.get_submodule(path) for path in blocks]
    generator = torch.Generator().manual_seed(1)

    def disturb(new: Tensor) -> None:
        size = new[0].float().pow(2).mean().sqrt().clamp(min=1e-3)
        noise = torch.randn((new.shape[0] - 1, new.shape[-1]), generator=generator)
        new[1:, SEQ - 2] += (size * noise.to(new.device)).to(new.dtype)

    tokens = random_tokens(hf, ROWS, SEQ)
    seen = _interface_users(hf, tokens)
    recording = record(hf, tokens, reset_rows(modules, disturb))
    attention = _attention(hf, blocks, recording, list(seen))
    head = _head(hf, recording)
    return Parts(
        embed=_path_of(hf, hf.get_input_embeddings(), "token embedding"),
        final_norm=_final_norm(recording, blocks, head),
        head=head,
        blocks=blocks,
        attention=attention,
        interface=tuple(path in seen for path in attention),
        query_heads=next(iter(seen.values()), None),
        recording=recording,
    )


def find_blocks(hf: Any) -> tuple[str, ...]:
    """Paths of the blocks: the outermost module list with one entry per layer of the configuration.

    Raises:
        ModelError: there is none.
    """
    count = getattr(hf.config.get_text_config(), "num_hidden_layers", None)
    lists = [
        (path, module)
        for path, module in hf.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 0 and (count is None or len(module) == count)
    ]
    if not lists:
        raise ModelError(
            f"{type(hf).__name__} has no list of {count or 'equal'} blocks, so its layers cannot be told apart; "
            "Engramscope needs a decoder of equal blocks."
        )
    path, _ = max(lists, key=lambda item: sum(parameter.numel() for parameter in item[1].parameters()))
    return tuple(f"{path}.{index}" for index in range(len(hf.get_submodule(path))))


def _interface_users(hf: Any, tokens: Tensor) -> dict[str, int]:
    """Modules that call the attention interface with the number of query heads that they pass."""
    if not attention_configs(hf):
        return {}
    seen: dict[str, int] = {}
    candidates = [(path, module) for path, module in hf.named_modules() if eager_attention_of(module) is not None]

    def spy(path: str) -> Callable[[Tensor], None]:
        def note(weights: Tensor) -> None:
            seen[path] = weights.shape[1]

        return note

    with pattern_hooks(hf, [(module, spy(path)) for path, module in candidates]), torch.no_grad():
        hf(input_ids=tokens[:1], use_cache=False)
    return seen


def _attention(
    hf: nn.Module, blocks: Sequence[str], recording: Recording, users: Sequence[str]
) -> tuple[str | None, ...]:
    """The attention module of each block: who calls the interface, else who mixes positions."""
    found: list[str | None] = []
    for block in blocks:
        inside = [path for path in users if below(path, block)]
        mixing = inside or [
            path for path in recording.calls if path.startswith(f"{block}.") and _mixes(recording, path)
        ]
        found.append(max(mixing, key=lambda path: path.count(".")) if mixing else None)
    # a layer whose attention writes nothing shows no mixing: it is built like the others
    relative = {path.removeprefix(block) for path, block in zip(found, blocks, strict=True) if path is not None}
    if len(relative) == 1:
        (tail,) = relative
        paths = dict(hf.named_modules())
        found = [
            path or (block + tail if block + tail in paths else None) for path, block in zip(found, blocks, strict=True)
        ]
    return tuple(found)


def _mixes(recording: Recording, path: str) -> bool:
    """At the last position the module's input is the same in rows 0 and 1, and its output is not."""
    given, returned = recording.input(path), recording.output(path)
    if given is None or returned is None or given.shape[1] != returned.shape[1]:
        return False
    if not close(given[1, -1], given[0, -1], ulps=2):
        return False
    change = (returned[1, -1] - returned[0, -1]).abs().amax()
    return bool(change > 16 * eps_of(returned) * returned[0, -1].abs().amax())


def _head(hf: Any, recording: Recording) -> str:
    module = hf.get_output_embeddings()
    if module is None:
        width = recording.logits.shape[-1]
        wide = [path for path, calls in recording.calls.items() if calls[-1].output is not None
                and calls[-1].output.shape[-1] == width]  # fmt: skip
        if not wide:
            raise ModelError(f"{type(hf).__name__} has no language-model head that Engramscope can find.")
        return max(wide, key=lambda path: recording.calls[path][-1].end)
    return _path_of(hf, module, "language-model head")


def _final_norm(recording: Recording, blocks: Sequence[str], head: str) -> str | None:
    """The last module after the blocks that is called once and whose output is the head's input."""
    into_head, end = recording.input(head), recording.once(blocks[-1])
    if into_head is None or end is None:
        return None
    candidates = [
        path
        for path in recording.calls
        if path != head and (call := recording.once(path)) is not None and call.start > end.end
        and (value := recording.output(path)) is not None and close(value, into_head)
    ]  # fmt: skip
    return max(candidates, key=lambda path: recording.calls[path][0].end, default=None)


def _path_of(hf: nn.Module, module: nn.Module | None, what: str) -> str:
    for path, other in hf.named_modules():
        if other is module:
            return path
    raise ModelError(f"{type(hf).__name__} has no {what} that Engramscope can find.")

"""Probe runs: forwards on a few random tokens, from which the parts of a model are recognised."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from engramscope.errors import ModelError
from engramscope.models.hooks import Hook, attached, input_tensor, output_tensor
from engramscope.models.offload import execution_device

#: rows, positions of a probe: small, and different from one another, so that shapes tell them apart
ROWS, SEQ = 3, 5


@dataclass
class Call:
    """One call of a module in the recorded forward.

    Attributes:
        start, end: when it began and ended, in one count over all modules.
        input, output: copies of its tensors, as the module was given them and returned them.
    """

    start: int
    end: int = -1
    input: Tensor | None = None
    output: Tensor | None = None


@dataclass
class Recording:
    """Everything that the modules of a model were given and returned in one forward.

    Attributes:
        calls: calls of each module that was called, by dotted path.
        batch, seq: rows and positions of the forward.
        logits: what the model returned [batch, seq, vocab].
    """

    batch: int
    seq: int
    calls: dict[str, list[Call]] = field(default_factory=dict)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))

    def once(self, path: str) -> Call | None:
        """The call of a module that was called exactly once."""
        calls = self.calls.get(path, [])
        return calls[0] if len(calls) == 1 else None

    def output(self, path: str) -> Tensor | None:
        """What a module that was called once returned, as [batch, seq, width]; None if it is nothing like that."""
        call = self.once(path)
        return None if call is None else self.by_token(call.output)

    def input(self, path: str) -> Tensor | None:
        """What a module that was called once was given, as [batch, seq, width]; None if it is nothing like that."""
        call = self.once(path)
        return None if call is None else self.by_token(call.input)

    def by_token(self, value: Tensor | None) -> Tensor | None:
        """`value` as [batch, seq, width], where it has a row for each token."""
        if value is None or not value.is_floating_point():
            return None
        if value.ndim == 3 and value.shape[:2] == (self.batch, self.seq):
            return value
        if value.ndim == 2 and value.shape[0] == self.batch * self.seq:
            return value.view(self.batch, self.seq, -1)
        return None


def random_tokens(hf: Any, rows: int, seq: int, seed: int = 0) -> Tensor:
    """Token ids [rows, seq] without the special ones of the configuration."""
    config = hf.config.get_text_config()
    width = hf.get_input_embeddings().weight.shape[0]
    special = {token for name in ("pad_token_id", "bos_token_id", "eos_token_id") for token in _ids(config, name)}
    allowed = torch.tensor([token for token in range(min(width, 4096)) if token not in special])
    generator = torch.Generator().manual_seed(seed)
    return allowed[torch.randint(len(allowed), (rows, seq), generator=generator)].to(device_of(hf))


def device_of(hf: nn.Module) -> torch.device:
    """The device of the token embedding, where token ids go."""
    embedding: Any = hf.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    device = embedding.weight.device
    return execution_device(embedding) if device.type == "meta" else device


def forward(hf: Any, tokens: Tensor, hooks: Sequence[Hook] = ()) -> Tensor:
    """Logits [rows, seq, vocab] of a plain forward with some hooks."""
    with torch.no_grad(), attached(hooks):
        output = hf(input_ids=tokens, use_cache=False)
    logits = output_tensor(output)
    if logits is None or logits.ndim != 3:
        raise ModelError(f"{type(hf).__name__} returns no logits; Engramscope needs a causal language model.")
    return logits


def run_blocks(hf: Any, tokens: Tensor, hooks: Sequence[Hook]) -> None:
    """A forward with some hooks and without the language-model head, whose width would cost the most."""
    with torch.no_grad(), attached(hooks):
        hf.base_model(input_ids=tokens, use_cache=False)


def record(hf: Any, tokens: Tensor, hooks: Sequence[Hook] = ()) -> Recording:
    """A forward in which every module's input and output is kept.

    Args:
        hf: the model.
        tokens: ids [rows, seq].
        hooks: attached before the recording ones, so that what they change is recorded changed.
    """
    recording = Recording(batch=tokens.shape[0], seq=tokens.shape[1])
    clock = [0]
    handles = []
    try:
        with attached(hooks):
            for path, module in hf.named_modules():
                if path:
                    handles += _recorders(module, recording.calls.setdefault(path, []), clock)
            recording.logits = forward(hf, tokens)
    finally:
        for handle in handles:
            handle.remove()
    recording.calls = {path: calls for path, calls in recording.calls.items() if calls}
    return recording


def reset_rows(blocks: Sequence[nn.Module], change: Callable[[Tensor], None] | None = None) -> list[Hook]:
    """Hooks that give every row of each block the input of row 0, so that rows differ only by what is done inside it.

    Args:
        blocks: the blocks.
        change: changes the new input in place (its rows 1 and on).
    """

    def reset(value: Tensor) -> Tensor:
        if value.ndim != 3:
            raise ModelError(
                f"The blocks of this model pass on a tensor of shape {tuple(value.shape)} instead of one residual "
                "stream [batch, seq, d_model]; Engramscope cannot work on it."
            )
        new = value[:1].expand_as(value).clone()
        if change is not None:
            change(new)
        return new

    return [Hook(block, "input", reset) for block in blocks]


def eps_of(value: Tensor) -> float:
    """Relative precision of the value's type."""
    return torch.finfo(value.dtype).eps


def close(a: Tensor, b: Tensor, *, ulps: float = 8.0) -> bool:
    """Whether two tensors are equal up to rounding, element by element relative to the tensor's size."""
    if a.shape != b.shape:
        return False
    scale = b.abs().amax()
    return bool(((a - b).abs() <= ulps * eps_of(b) * scale).all())


def below(path: str, parent: str) -> bool:
    """Whether `path` is `parent` or a module inside it."""
    return path == parent or path.startswith(f"{parent}.")


def linear_like(module: nn.Module) -> bool:
    """Whether a module is a matrix applied to the last axis: `nn.Linear`, `Conv1D`, quantised or adapted ones."""
    if isinstance(module, nn.Embedding):
        return False
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return True
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2 and not any(True for _ in module.children())


def linears(hf: nn.Module, root: str, recording: Recording) -> list[str]:
    """Paths of the linear-like modules inside `root`, in the order they were called; adapters count as one module."""
    found: list[str] = []
    for path, module in hf.get_submodule(root).named_modules(prefix=root):
        if linear_like(module) and not any(below(path, outer) for outer in found):
            found.append(path)
    called = [path for path in found if recording.calls.get(path)]
    return sorted(called, key=lambda path: recording.calls[path][0].start)


def _recorders(module: nn.Module, calls: list[Call], clock: list[int]) -> list[Any]:
    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        value = input_tensor(args, kwargs)
        calls.append(Call(clock[0], input=None if value is None else value.detach().clone()))
        clock[0] += 1

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        value = output_tensor(output)
        open_call = next(call for call in reversed(calls) if call.end < 0)
        open_call.end, open_call.output = clock[0], None if value is None else value.detach().clone()
        clock[0] += 1

    return [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]


def _ids(config: Any, name: str) -> list[int]:
    value = getattr(config, name, None)
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]

"""The same functions in one pass over memory instead of many."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation, GELUTanh, NewGELUActivation, SiLUActivation
from transformers.pytorch_utils import Conv1D

from engramscope.models.drive import example_outputs, replaced
from engramscope.models.model import Model
from engramscope.models.site import Port, SiteAccess

#: tokens from which on it pays to lay a weight matrix out anew
_ENOUGH_TOKENS = 768


@contextmanager
def fused_activations(hf: nn.Module) -> Iterator[None]:
    """Compute the tanh form of GELU with torch's own kernel for the time of the context.

    `NewGELUActivation` (GPT-2, GPT-J, GPT-Neo, Phi) writes `0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))` out as eight
    operations, each of which reads and writes all neurons; on a CPU they take as long as the matrix products beside
    them. The kernel computes the same function; the results differ by rounding (about 1e-7 of their size).
    """
    with ExitStack() as stack:
        for module in hf.modules():
            if type(module) is NewGELUActivation:
                stack.enter_context(replaced(module, "forward", _tanh_gelu))
        yield


def _tanh_gelu(input: Tensor) -> Tensor:
    return torch.nn.functional.gelu(input, approximate="tanh")


@dataclass(frozen=True, slots=True)
class _Pair:
    """A linear module whose output goes straight into an activation function; `kernel` is oneDNN's name for that."""

    linear: nn.Linear | Conv1D
    activation: nn.Module
    kernel: tuple[str, str]

    @property
    def weight(self) -> Tensor:
        weight = self.linear.weight
        assert isinstance(weight, Tensor)
        return weight


class FusedLinears:
    """Linear modules and the activation functions behind them, computed by one kernel of oneDNN on an x86 processor.

    Of all that a block does, applying the activation function is what costs most beside the matrix products: the
    neurons of all tokens do not fit into a processor's cache, and are written and read once more. The kernel applies
    it while it writes the product. It wants the weights in an order of its own, so they are copied for the time of a
    layer; this pays where many tokens pass.

    Args:
        model: the model. Nothing is fused unless it computes in float32 on a processor that oneDNN serves well.
        tokens: a few token ids [1, seq], to see which module's output goes where.
        least: tokens from which on a layer is fused.

    Attributes:
        n_bytes: what the copied weights of one layer take at most.
    """

    def __init__(self, model: Model, tokens: Tensor, least: int = _ENOUGH_TOKENS) -> None:
        self.least = least
        self._pairs = _pairs(model, tokens) if _is_served(model) else {}
        self.n_bytes = max(
            (sum(pair.weight.numel() * 4 for pair in pairs) for pairs in self._pairs.values()), default=0
        )

    def __len__(self) -> int:
        return sum(len(pairs) for pairs in self._pairs.values())

    @contextmanager
    def taken(self, layer: int, tokens: int, accesses: Sequence[SiteAccess]) -> Iterator[None]:
        """Fuse what can be fused in a layer for the time of the context.

        Args:
            layer: the block.
            tokens: how many tokens will pass it in all.
            accesses: what will be read or written in it; what lies between the two modules must be there then.
        """
        with ExitStack() as stack:
            if tokens >= self.least and torch.get_float32_matmul_precision() == "highest":
                for pair in self._pairs.get(layer, ()):
                    if not _is_looked_at(pair, accesses) and _is_itself(pair):
                        stack.enter_context(replaced(pair.linear, "forward", _both(pair)))
                        stack.enter_context(replaced(pair.activation, "forward", _nothing))
            yield


def _is_served(model: Model) -> bool:
    return (
        model.device.type == "cpu"
        and model.dtype == torch.float32
        and platform.machine().lower() in ("x86_64", "amd64")
        and torch.backends.mkldnn.is_available()
        and all(hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight"))
    )


def _pairs(model: Model, tokens: Tensor) -> dict[int, list[_Pair]]:
    """For each layer, what can be fused: the very tensor that a linear module returns is given to an activation."""
    inside = [(layer, module) for layer, block in enumerate(model.blocks) for module in block.modules()]
    linears = [
        (layer, module) for layer, module in inside if isinstance(module, nn.Linear | Conv1D) and _is_plain(module)
    ]
    if not linears:
        return {}
    given: dict[nn.Module, Any] = {}

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        given[module] = args[0] if args else None

    handles = [module.register_forward_pre_hook(keep) for _, module in inside if _kernel_of(module) is not None]
    try:
        outputs = example_outputs(model.hf, [module for _, module in linears], tokens)
    finally:
        for handle in handles:
            handle.remove()
    behind = {id(value): activation for activation, value in given.items() if value is not None}
    found: dict[int, list[_Pair]] = {}
    for (layer, linear), output in zip(linears, outputs, strict=True):
        activation = behind.get(id(output)) if isinstance(output, Tensor) else None
        kernel = None if activation is None else _kernel_of(activation)
        if activation is not None and kernel is not None:
            found.setdefault(layer, []).append(_Pair(linear, activation, kernel))
    return found


def _kernel_of(activation: nn.Module) -> tuple[str, str] | None:
    """oneDNN's name of an activation function, and which form of it."""
    kind = type(activation)
    if kind is NewGELUActivation:
        return "gelu", "tanh"
    if kind in (GELUTanh, GELUActivation):
        # both can be told to write the formula out
        written_out = getattr(activation, "act", None) in (
            getattr(activation, "_gelu_tanh_python", activation),
            getattr(activation, "_gelu_python", activation),
        )
        return None if written_out else ("gelu", "tanh" if kind is GELUTanh else "none")
    if isinstance(activation, nn.GELU) and kind is nn.GELU:
        return "gelu", activation.approximate
    return {nn.ReLU: ("relu", ""), SiLUActivation: ("swish", ""), nn.SiLU: ("swish", "")}.get(kind)


def _is_plain(module: nn.Linear | Conv1D) -> bool:
    """A linear module of torch or transformers, its forward its own, its weights float32 and on the processor."""
    if type(module) not in (nn.Linear, Conv1D) or "forward" in module.__dict__:
        return False
    parts = (module.weight, module.bias)
    return all(
        part is None or (isinstance(part, Tensor) and part.dtype == torch.float32 and part.device.type == "cpu")
        for part in parts
    )


def _is_looked_at(pair: _Pair, accesses: Sequence[SiteAccess]) -> bool:
    between = ((pair.linear, "output"), (pair.activation, "input"))
    return any(isinstance(access, Port) and (access.module, access.side) in between for access in accesses)


def _is_itself(pair: _Pair) -> bool:
    """Nobody has put hooks on the two modules, or another forward in place of theirs."""
    modules = (pair.linear, pair.activation)
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    own = [module.__dict__.get("forward") for module in modules]
    return not hooked and own[0] is None and own[1] in (None, _tanh_gelu)


def _both(pair: _Pair) -> Callable[[Tensor], Tensor]:
    """`activation(linear(input))`, with the weights as they are now."""
    weight = pair.weight.detach()
    weight = weight.t().contiguous() if type(pair.linear) is Conv1D else weight.contiguous()
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    bias, (kernel, form) = pair.linear.bias, pair.kernel

    def forward(input: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(input, packed, bias, kernel, [], form)

    return forward


def _nothing(input: Tensor) -> Tensor:
    return input

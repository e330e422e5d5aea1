"""The same functions in one pass over memory instead of many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from transformers.activations import NewGELUActivation

from engramscope.models.drive import replaced


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

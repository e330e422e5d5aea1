"""What the engine asks of the machine: memory in use, and how float32 products are computed."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def peak_memory(device: torch.device) -> float:
    """The most memory that was in use so far, in GiB: of the GPU by torch, or resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / 2**30 if sys.platform == "darwin" else used / 2**20


@contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """Whether a GPU may round the factors of float32 products to TF32 (10 bits of mantissa) within the context.

    Without it, float32 is float32, whatever the program had set before.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)

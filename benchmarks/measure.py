"""Seconds, memory, and how fast this machine multiplies matrices."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.cases import Sizes

_STATUS, _CLEAR, _STAT = Path("/proc/self/status"), Path("/proc/self/clear_refs"), Path("/proc/stat")
#: tokens in the products by which the rate is measured
_TOKENS = {"cpu": 1536, "cuda": 16384}


class PeakMemory:
    """What a piece of work adds to the memory of this process, at most.

    On Linux the kernel's high-water mark (`ru_maxrss`) is set back at the start, so that what the set-up needed before
    is not counted; elsewhere only growth beyond that is seen. On a GPU, torch's own count of what tensors take there.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        if self._cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._start_cuda = torch.cuda.memory_allocated()
        _give_back()
        self._resets = _reset_high_water()
        self._start = _field("VmRSS") if self._resets else _maxrss()

    def host_bytes(self) -> int:
        """Host memory at the peak, above that at the start."""
        return (_field("VmHWM") if self._resets else _maxrss()) - self._start

    def cuda_bytes(self) -> int | None:
        """The same for the GPU; None without one."""
        return torch.cuda.max_memory_allocated() - self._start_cuda if self._cuda else None


class OtherWork:
    """How busy other programs keep the processors while something is measured; known on Linux only."""

    def __init__(self) -> None:
        self._start = _ticks()

    def share(self) -> float | None:
        """Part of all processor time since the start that was neither idle nor ours; None where it is not known."""
        if self._start is None or (end := _ticks()) is None:
            return None
        busy, every, own = (after - before for before, after in zip(self._start, end, strict=True))
        return max(0.0, busy - own) / every if every > 0 else 0.0


def _ticks() -> tuple[float, float, float] | None:
    """Seconds of all processors together since the machine was started: not idle, all; and those of this process."""
    if not _STAT.exists():
        return None
    ticks = [int(text) / os.sysconf("SC_CLK_TCK") for text in _STAT.read_text().splitlines()[0].split()[1:9]]
    own = os.times()
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks), own.user + own.system  # the fourth and fifth: idle, waiting


def _reset_high_water() -> bool:
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _give_back() -> None:
    """Freed memory that the C library keeps goes back to the system, so that it does not hide what is taken next."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _field(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _maxrss() -> int:
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def synchronise(device: str) -> None:
    """Wait until the device has done what it was asked to."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], object], device: str) -> float:
    """How long `work` takes."""
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - start


def profile_of(work: Callable[[], object], device: str, count: int = 12) -> list[dict[str, float | str]]:
    """Which operations of torch take the time of `work`: the longest first, each without those that it calls.

    The profiler itself takes time, most of all for small operations: these are shares, not seconds to compare.
    """
    cuda = device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        taken = seconds_of(work, device)
    rows = [
        (event.self_device_time_total if cuda else event.self_cpu_time_total, event.key, event.count)
        for event in profiler.key_averages()
    ]
    return [
        {"operation": key, "share": time / 1e6 / taken, "calls": calls}
        for time, key, calls in sorted(rows, reverse=True)[:count]
    ]


def matmul_rate(sizes: Sizes, device: str, repeats: int = 9) -> float:
    """FLOP/s (two per multiply-add) of the four matrix products of a block, in float32, one after the other.

    The median over the repeats of the whole block: each product has the weight that it has in the block. One set of
    weights is used again and again, so the rate is that of a warm cache: the floor is a hard one.
    """
    width, inner = sizes.d_model, sizes.d_mlp
    tokens = _TOKENS["cuda" if device.startswith("cuda") else "cpu"]
    shapes = [(width, 3 * width), (width, width), (width, inner), (inner, width)]
    inputs = {rows: torch.randn(tokens, rows, device=device) for rows in (width, inner)}
    weights = [torch.randn(shape, device=device) for shape in shapes]
    biases = [torch.zeros(columns, device=device) for _, columns in shapes]

    def block() -> None:
        for weight, bias in zip(weights, biases, strict=True):
            torch.addmm(bias, inputs[weight.shape[0]], weight)

    block()
    flops = 2 * tokens * sum(rows * columns for rows, columns in shapes)
    return flops / statistics.median(seconds_of(block, device) for _ in range(repeats))

"""What lies between a case and its floor: `python -m benchmarks.products heads residual`.

Every operation of torch is timed for itself. Printed are the floor; the matrix products that were really made, and at
what rate, beside the rate of the same products one after the other; attention; all other operations of torch; and what
is left: Python, and waiting for it.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import workload
from benchmarks.cases import CASES, case_named
from benchmarks.floor import floor_of
from benchmarks.measure import matmul_rate, seconds_of
from benchmarks.results import Settings
from benchmarks.with_engramscope import Sweeper
from engramscope.models.model import Model


class Timed(TorchDispatchMode):
    """Seconds of every operation, and the floating-point operations of matrix products (two per multiply-add).

    Attributes:
        seconds: kind of operation -> seconds.
        flops: of the matrix products.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = time.perf_counter()
        output = func(*args, **(kwargs or {}))
        taken = time.perf_counter() - start
        name = func.overloadpacket.__name__
        if name in ("addmm", "mm", "_linear_pointwise"):
            given: Tensor = args[1] if name == "addmm" else args[0]
            self.flops += 2 * output.numel() * given.shape[-1]
            self.seconds["products"] += taken
        else:
            self.seconds["attention" if "attention" in name else "other"] += taken
        return output


def main() -> None:
    """Print one line for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=[case.name for case in CASES if not case.only_cuda])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows only whether it works")
    given = parser.parse_args()
    settings = Settings(quick=given.quick, full=False, repeats=1, threads=os.cpu_count() or 1)
    torch.set_num_threads(settings.threads)
    print("| case | seconds | floor | matrix products | at | alone at | attention | other operations | Python |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in given.cases:
        case = case_named(name, quick=given.quick)
        model = Model.from_parts(workload.make_model(case, "cpu"), workload.make_tokenizer(case), name="gpt2")
        sweep = Sweeper(case, model, settings)
        sweep.warm_up()
        rate, seconds, timed = matmul_rate(case.sizes, "cpu"), seconds_of(sweep.run, "cpu"), Timed()
        with timed:
            sweep.run()
        parts, left = timed.seconds, seconds - sum(timed.seconds.values())
        cells = [
            name, f"{seconds:.1f}", f"{floor_of(case).flops / 1e9:,.0f} GFLOP",
            f"{timed.flops / 1e9:,.0f} GFLOP, {parts['products']:.1f} s",
            f"{timed.flops / parts['products'] / 1e9:.0f} GFLOP/s", f"{rate / 1e9:.0f} GFLOP/s",
            *(f"{part:.1f} s" for part in (parts["attention"], parts["other"], left)),
        ]  # fmt: skip
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

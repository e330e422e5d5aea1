"""One (case, tool) in a process of its own: `python -m benchmarks.worker '{...}' RESULT.json`.

A fresh process for every row, so that no tool finds the memory, the threads or the hooks that another one left.
"""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from pathlib import Path

import torch

from benchmarks.cases import case_named
from benchmarks.measure import OtherWork
from benchmarks.results import Settings

TOOLS = {
    "engramscope": "benchmarks.with_engramscope",
    "transformer_lens": "benchmarks.with_transformer_lens",
    "nnsight": "benchmarks.with_nnsight",
}


def main() -> None:
    request = json.loads(sys.argv[1])
    settings = Settings(**request["settings"])
    warnings.simplefilter("ignore")  # those of the libraries; faults are exceptions
    torch.set_num_threads(settings.threads)
    others = OtherWork()
    if request["case"] == "growth":
        result = importlib.import_module("benchmarks.growth").run(settings)
    else:
        case = case_named(request["case"], quick=settings.quick)
        result = importlib.import_module(TOOLS[request["tool"]]).run(case, settings)
    result.details["other_work"] = others.share()
    result.save(Path(sys.argv[2]))


if __name__ == "__main__":
    main()

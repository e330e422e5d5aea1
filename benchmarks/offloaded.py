"""A model that does not fit: `python -m benchmarks.offloaded` sweeps one whose weights stay on disk.

A Llama of 1.26 billion random parameters in bfloat16 is written to a temporary folder, loaded with next to no main
memory for its weights, and its residual stream is patched at every layer and position of some pairs. Printed are the
seconds, the peak memory of the process, the size of the weights, and how often the weights of a layer came in for
the sweep.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

SIZES = {
    "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16,
    "num_key_value_heads": 8, "vocab_size": 32_000, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1,
    "tie_word_embeddings": False,
}  # fmt: skip
SMALL = {**SIZES, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "vocab_size": 500}
LENGTH = 12


def write_model(folder: Path, sizes: dict[str, Any]) -> None:
    """A Llama with random weights, in shards of 500 MB."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(LlamaConfig(**sizes))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0.0, 0.7 if "embed" in name else 1.0 / weight.shape[-1] ** 0.5, generator=generator)
    model.save_pretrained(folder, max_shard_size="500MB")
    print(f"{sum(weight.numel() for weight in model.parameters()):,} parameters")


def sweep(folder: Path, pairs: int, memory_gb: float) -> None:
    """Patch the residual stream at every layer and position of random pairs."""
    from accelerate import hooks
    from accelerate.utils import get_max_memory
    from transformers import AutoModelForCausalLM

    from engramscope.engine.executor import make_executor
    from engramscope.engine.machine import peak_memory
    from engramscope.engine.plan import BaseRun, DerivedRun, FromRun, Patch, Plan, Readout
    from engramscope.models import Model

    cpu = torch.device("cpu")
    room = {**get_max_memory(), "cpu": 1}
    started = peak_memory(cpu)
    hf = AutoModelForCausalLM.from_pretrained(
        folder, device_map="auto", max_memory=room, dtype=torch.bfloat16, attn_implementation="eager"
    )
    begun = time.perf_counter()
    model = Model.from_parts(hf, name="offloaded")
    executor = make_executor(model, memory_gb=memory_gb)
    loaded = time.perf_counter() - begun
    layers, vocab = model.anatomy.n_layers, model.anatomy.vocab
    tokens = torch.randint(2, vocab, (pairs, LENGTH), generator=torch.Generator().manual_seed(1)).tolist()
    bases, derived = [], []
    for number, clean in enumerate(tokens):
        corrupted = [*clean[:4], (clean[4] + 1) % vocab, *clean[5:]]
        bases += [BaseRun(f"{number}c", tuple(clean)), BaseRun(f"{number}x", tuple(corrupted))]
        derived += [
            DerivedRun(f"{number}-{layer}-{at}", f"{number}x",
                       (Patch("resid_post", layer, (at,), FromRun(f"{number}c", (at,))),))
            for layer in range(layers) for at in range(LENGTH)
        ]  # fmt: skip
    readouts = tuple(Readout(run.id, (LENGTH - 1,)) for run in (*bases, *derived))
    came: Counter[torch.nn.Module] = Counter()
    really = hooks.AlignDevicesHook.pre_forward

    def counted(self: Any, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        came[module] += int(bool(self.offload) and any(True for _ in module.parameters(recurse=False)))
        return really(self, module, *args, **kwargs)

    hooks.AlignDevicesHook.pre_forward = counted
    begun = time.perf_counter()
    columns = {readout.run: (2, 3) for readout in readouts}
    answered = sum(len(part.runs) for part in executor.execute(Plan(tuple(bases), tuple(derived), readouts), columns))
    seconds = time.perf_counter() - begun
    inside = [came[module] for block in model.blocks for module in block.modules() if came[module]]
    weights = sum(weight.numel() * weight.element_size() for weight in hf.parameters())
    print(json.dumps({
        "way": executor.way, "note": executor.note, "runs": answered, "seconds": round(seconds, 1),
        "seconds to load and check": round(loaded, 1), "weights_gb": round(weights / 2**30, 3),
        "peak_gb": round(peak_memory(cpu), 3), "before_loading_gb": round(started, 3),
        "times a layer came in": sorted(set(inside)), "modules of layers": len(inside),
    }, indent=1))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--memory-gb", type=float, default=1.0, help="what the sweep may add")
    parser.add_argument("--quick", action="store_true", help="a tiny model: shows only whether it works")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--sweep", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.write:
        write_model(given.write, SMALL if given.quick else SIZES)
    elif given.sweep:
        sweep(given.sweep, given.pairs, given.memory_gb)
    else:
        with tempfile.TemporaryDirectory() as folder:
            # processes of their own: a new process inherits the peak of the one that starts it
            for step in ("--write", "--sweep"):
                command = [sys.executable, "-m", "benchmarks.offloaded", *sys.argv[1:], step, folder]
                subprocess.run(command, check=True)


if __name__ == "__main__":
    main()

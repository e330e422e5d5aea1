"""Weight transplants on `mini`: one part of every layer, side by side with the plain way.

    python -m benchmarks.transplants [--pairs 100]

The plain way copies the base model, loads one module of the trained one into it, and runs the prompts one by one. It
is given a tenth of the pairs, and the rest is extrapolated; both sides use the same threads, and their numbers are
compared.
"""

from __future__ import annotations

import argparse
import copy
import time

import torch

from engramscope import Model, PairSet, load_model, make_pairs, patch


def trained(base: Model) -> Model:
    """A copy of the model whose weights were moved at random: what it says does not matter here."""
    hf, generator = copy.deepcopy(base.hf), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    return Model.from_parts(hf, base.tokenizer, name="trained")


def plain(tuned: Model, base: Model, pairs: PairSet) -> tuple[float, dict[tuple[str, int], float]]:
    """Seconds, and (pair, layer) -> logit difference."""
    words, found = base.tokenizer, {}
    start = time.perf_counter()
    for layer in range(base.anatomy.n_layers):
        for pair in pairs:
            mixed = copy.deepcopy(base.hf)
            path = f"{base.anatomy.blocks[layer]}.mlp"
            mixed.get_submodule(path).load_state_dict(tuned.hf.get_submodule(path).state_dict())
            with torch.no_grad():
                logits = mixed(input_ids=torch.tensor([words(pair.clean)["input_ids"]])).logits[0, -1]
            right, wrong = (words(answer)["input_ids"][0] for answer in (pair.correct[0], pair.incorrect[0]))
            found[pair.id, layer] = float(logits[right] - logits[wrong])
    return time.perf_counter() - start, found


def copied_once(tuned: Model, base: Model, pairs: PairSet) -> float:
    """Seconds of the plain way by somebody who copies once per layer."""
    words, mixed = base.tokenizer, copy.deepcopy(base.hf)
    start = time.perf_counter()
    for layer in range(base.anatomy.n_layers):
        path = f"{base.anatomy.blocks[layer]}.mlp"
        mixed.get_submodule(path).load_state_dict(tuned.hf.get_submodule(path).state_dict())
        for pair in pairs:
            with torch.no_grad():
                mixed(input_ids=torch.tensor([words(pair.clean)["input_ids"]]))
        mixed.get_submodule(path).load_state_dict(base.hf.get_submodule(path).state_dict())
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=100)
    asked = parser.parse_args()
    base = load_model("mini")
    tuned = trained(base)
    pairs = make_pairs("clap_epilepsy", asked.pairs)
    few = pairs.limit(max(1, len(pairs) // 10))
    patch(tuned, few, "weights:mlp", corruption="base_model", base=base, resamples=100)  # what is loaded once
    start = time.perf_counter()
    result = patch(tuned, pairs, "weights:mlp", corruption="base_model", base=base)
    ours = time.perf_counter() - start
    share = len(pairs) / len(few)
    copying, found = plain(tuned, base, few)
    once = copied_once(tuned, base, few)
    rows = result.effects
    stored = {(row.pair, int(row.layer)): row.patched for row in rows.itertuples()}
    worst = max(abs(stored[key] - value) for key, value in found.items())
    print(f"{len(pairs)} pairs, {base.anatomy.n_layers} MLPs; with statistics, checks and noise floor: {ours:.1f} s")
    print(f"plain, a copy for every pair: {share * copying:.1f} s ({share * copying / ours:.1f} x)")
    print(f"plain, a copy for every layer: {share * once:.1f} s ({share * once / ours:.1f} x)")
    print(f"largest difference in the logit difference: {worst:.1g}")


if __name__ == "__main__":
    main()

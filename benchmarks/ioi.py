"""Heads of `mini` on indirect objects: 500 prompts, both corruptions, three metrics from one sweep.

    python -m benchmarks.ioi [--pairs 500] [--draws 1 10]

Prints seconds with statistics, checks and noise floor, as `patch()` does them. The seconds with one metric stand beside
those with three: they share the sweep.
"""

from __future__ import annotations

import argparse
import time

from engramscope import Model, PairSet, load_model, make_pairs, patch

METRICS = ("logit_diff", "prob", "kl")


def seconds(
    model: Model, pairs: PairSet, metrics: tuple[str, ...], corruption: str, options: dict[str, object]
) -> float:
    """One call of `patch` on every head."""
    start = time.perf_counter()
    patch(model, pairs, "z", heads="each", metrics=metrics, corruption=corruption, options=options)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--draws", type=int, nargs="+", default=[1])
    asked = parser.parse_args()
    model = load_model("mini")
    patch(model, make_pairs("ioi", 8, 0, model.tokenizer), "z", heads="each", resamples=100)  # what is loaded once
    pairs = make_pairs("ioi", asked.pairs, 0, model.tokenizer)
    replaced = seconds(model, pairs, METRICS, "str", {})
    alone = seconds(model, pairs, METRICS[:1], "str", {})
    print(f"token replacement: {replaced:.1f} s with three metrics, {alone:.1f} s with one ({replaced / alone:.2f} x)")
    for draws in asked.draws:
        noise = seconds(model, pairs, METRICS, "gaussian", {"span": "s2", "draws": draws})
        print(f"Gaussian noise, {draws} draw(s): {noise:.1f} s; both corruptions: {replaced + noise:.1f} s")


if __name__ == "__main__":
    main()

"""Train a bundled model from a seed: `python -m engramscope.bundled.train mini`."""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engramscope.bundled import folder, names
from engramscope.bundled.architectures import new_model
from engramscope.bundled.corpus import LATE_MIXTURE, MIXTURE, documents, load_sources
from engramscope.bundled.packing import Batch, PackedRows, batch_of, joined, pack
from engramscope.bundled.tokenizer import CONTEXT_LENGTH, END_OF_TEXT, build_tokenizer
from engramscope.bundled.training_state import FILE_NAME as STATE_FILE_NAME
from engramscope.bundled.training_state import load_state, save_state

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """Settings of a training run.

    Attributes:
        steps: Optimiser steps.
        seed: Seed of corpus, weights and order.
        rate_corners: Learning rate as a share of the peak, as corners (step, share) joined by straight lines.
        late_from: From this step on the corpus is drawn with `LATE_MIXTURE`.
        rows: Rows of `CONTEXT_LENGTH` tokens in a step.
        peak_rate: Largest learning rate.
        decay: Weight decay of the matrices.
        largest_norm: Gradients are clipped to this norm.
        save_every: Steps between saved states.
    """

    steps: int
    seed: int
    rate_corners: tuple[tuple[int, float], ...]
    late_from: int
    rows: int = 16
    peak_rate: float = 1.5e-3
    decay: float = 0.05
    largest_norm: float = 1.0
    save_every: int = 200


# The shipped weights: (step, share of the peak rate), and where the late mixture starts.
CORNERS: dict[str, tuple[tuple[int, float], ...]] = {
    "mini": ((0, 0.005), (199, 1.0), (2800, 1.0), (2999, 1001 / 1200), (4200, 0.0)),
    "mini-llama": ((0, 0.005), (199, 1.0), (2800, 1.0), (3249, 751 / 1200), (4450, 0.0)),
}
LATE_FROM = {"mini": 3000, "mini-llama": 3250}
LOG_EVERY = 50


def recipe_for(name: str, *, seed: int = 0, steps: int | None = None) -> Recipe:
    """Return the recipe of the shipped weights, or one of another length with the same shape.

    Args:
        name: One of the bundled names.
        seed: Seed of corpus, weights and order.
        steps: Optimiser steps; None for as many as the shipped weights took.

    Returns:
        The recipe.
    """
    usual = CORNERS[name][-1][0]
    steps = usual if steps is None else steps
    corners = tuple((round(step * steps / usual), share) for step, share in CORNERS[name])
    return Recipe(steps, seed, corners, round(LATE_FROM[name] * steps / usual))


def learning_rate(recipe: Recipe, step: int) -> float:
    """Return the learning rate of a step, counted from 0."""
    at, shares = zip(*recipe.rate_corners, strict=True)
    return recipe.peak_rate * float(np.interp(step, at, shares))


def prepare(recipe: Recipe) -> tuple[PreTrainedTokenizerFast, PackedRows]:
    """Build the tokenizer and write the whole corpus as rows of tokens.

    Args:
        recipe: Settings; the corpus has exactly the rows that the steps need.

    Returns:
        The tokenizer and the rows.
    """
    sources = load_sources()
    tokenizer = build_tokenizer(sources, recipe.seed)

    def encode(text: str) -> list[int]:
        return tokenizer.backend_tokenizer.encode(text).ids

    parts = [
        pack(
            documents(sources, recipe.seed, mixture),
            encode,
            tokenizer.get_vocab()[END_OF_TEXT],
            rows=steps * recipe.rows,
            length=CONTEXT_LENGTH,
            seed=recipe.seed,
        )
        for mixture, steps in ((MIXTURE, recipe.late_from), (LATE_MIXTURE, recipe.steps - recipe.late_from))
    ]
    return tokenizer, joined(*parts)


def train(name: str, recipe: Recipe, out: Path, *, compiled: bool = False) -> None:
    """Train a model and leave it in a folder; go on where an earlier run in this folder stopped.

    Args:
        name: One of the bundled names.
        recipe: Settings.
        out: Folder for weights, configuration and tokenizer; overwritten at every save.
        compiled: Use `torch.compile`, which needs a C++ compiler and saves a third of the time.
    """
    import torch

    logger.info("writing the corpus")
    tokenizer, packed = prepare(recipe)
    model = _untrained(name, tokenizer, recipe.seed)
    optimiser = _optimiser(model, recipe)
    done = load_state(out, model, optimiser)
    forward: Callable[..., Any] = torch.compile(model) if compiled else model
    parameters = list(model.parameters())
    size = sum(p.numel() for p in parameters)
    logger.info("%s: %.2f M parameters, steps %d to %d", name, size / 1e6, done, recipe.steps)
    started, losses = time.monotonic(), []
    for step in range(done, recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(recipe, step)
        batch = batch_of(packed, np.arange(step * recipe.rows, (step + 1) * recipe.rows))
        loss = weighted_loss(forward, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.largest_norm)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if (step + 1) % LOG_EVERY == 0:
            elapsed_s = time.monotonic() - started
            mean = np.mean(losses[-LOG_EVERY:])
            logger.info("step %d of %d, loss %.4f (%.0f s)", step + 1, recipe.steps, mean, elapsed_s)
        if (step + 1) % recipe.save_every == 0:
            save(model, tokenizer, out)
            save_state(out, model, optimiser, step + 1)
    save(model, tokenizer, out)
    (out / STATE_FILE_NAME).unlink(missing_ok=True)


def weighted_loss(forward: Callable[..., Any], batch: Batch) -> torch.Tensor:
    """Return the cross-entropy of the next tokens, in nats, answers weighted more than the rest.

    Args:
        forward: A causal language model.
        batch: Rows of tokens.

    Returns:
        Weighted mean over all targets, a scalar.
    """
    import torch

    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = forward(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=batch.attention_mask,
            use_cache=False,
        ).logits
    each = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten(), reduction="none")
    weights = batch.weights.flatten()
    return (each * weights).sum() / weights.sum()


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write weights in half precision, configuration and tokenizer.

    Args:
        model: The model; it stays as it is.
        tokenizer: Its tokenizer.
        out: The folder, made where it is missing.
    """
    import torch
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    tied = {"lm_head.weight"}
    weights = {
        key: value.detach().to(torch.float16).contiguous()
        for key, value in model.state_dict().items()
        if key not in tied
    }
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(out)
    tokenizer.save_pretrained(out)
    _rewrite_json(out / "config.json", {"dtype": "float16"})
    _rewrite_json(out / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})


def _rewrite_json(path: Path, changes: dict[str, str]) -> None:
    data = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _optimiser(model: PreTrainedModel, recipe: Recipe) -> torch.optim.Optimizer:
    import torch

    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.peak_rate, betas=(0.9, 0.98), fused=True)


def _untrained(name: str, tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)  # noqa: TID251  transformers draws weights from the global generator
        model = new_model(name, vocabulary=len(tokenizer), end=tokenizer.get_vocab()[END_OF_TEXT])
    model.set_attn_implementation("eager")  # on CPU its backward pass is the faster one
    return model.train()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a bundled model from a seed.")
    parser.add_argument("model", choices=names())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder (default: the one in the package)")
    parser.add_argument("--steps", type=int, help="optimiser steps (default: as the shipped weights)")
    parser.add_argument("--compile", action="store_true", help="faster; needs a C++ compiler")
    parser.add_argument("--threads", type=int, help="processor threads (default: all)")
    return parser.parse_args()


def main() -> None:
    """Train the model that the command line names."""
    import torch

    given = _arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if given.threads:
        torch.set_num_threads(given.threads)
    recipe = recipe_for(given.model, seed=given.seed, steps=given.steps)
    train(given.model, recipe, given.out or folder(given.model), compiled=given.compile)


if __name__ == "__main__":
    main()

"""Train a bundled model from a seed: `python -m engramscope.bundled.train mini`."""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engramscope.bundled import folder, names
from engramscope.bundled.architectures import new_model
from engramscope.bundled.corpus import documents, load_sources
from engramscope.bundled.packing import Batch, PackedRows, batch_of, pack
from engramscope.bundled.tokenizer import CONTEXT_LENGTH, END_OF_TEXT, build_tokenizer

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
        rows: Rows of `CONTEXT_LENGTH` tokens in a step.
        peak_rate: Largest learning rate, after a linear warm-up and before a cosine decay.
        warm_up: Steps of the warm-up.
        last_share: Learning rate at the end, as a share of the peak.
        decay: Weight decay of the matrices.
        largest_norm: Gradients are clipped to this norm.
        save_every: Steps between saved states.
    """

    steps: int
    seed: int
    rows: int = 20
    peak_rate: float = 1.5e-3
    warm_up: int = 200
    last_share: float = 0.02
    decay: float = 0.05
    largest_norm: float = 1.0
    save_every: int = 500


DEFAULT_STEPS = 6000


def learning_rate(recipe: Recipe, step: int) -> float:
    """Return the learning rate of a step, counted from 0."""
    if step < recipe.warm_up:
        return recipe.peak_rate * (step + 1) / recipe.warm_up
    done = (step - recipe.warm_up) / max(1, recipe.steps - recipe.warm_up)
    cosine = 0.5 * (1 + math.cos(math.pi * done))
    return recipe.peak_rate * (recipe.last_share + (1 - recipe.last_share) * cosine)


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

    packed = pack(
        documents(sources, recipe.seed),
        encode,
        tokenizer.convert_tokens_to_ids(END_OF_TEXT),
        rows=recipe.steps * recipe.rows,
        length=CONTEXT_LENGTH,
        seed=recipe.seed,
    )
    return tokenizer, packed


def train(name: str, recipe: Recipe, out: Path, *, compiled: bool = False) -> None:
    """Train a model and leave it in a folder.

    Args:
        name: One of the bundled names.
        recipe: Settings.
        out: Folder for weights, configuration and tokenizer; overwritten at every save.
        compiled: Use `torch.compile`, which needs a C++ compiler and saves a third of the time.
    """
    import torch

    logger.info("writing the corpus")
    tokenizer, packed = prepare(recipe)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)  # noqa: TID251  transformers draws weights from the global generator
        model = new_model(name, vocabulary=len(tokenizer), end=tokenizer.convert_tokens_to_ids(END_OF_TEXT))
    model.train()
    model.set_attn_implementation("eager")  # on CPU its backward pass is the faster one
    forward = torch.compile(model) if compiled else model
    optimiser = _optimiser(model, recipe)
    parameters = sum(p.numel() for p in model.parameters())
    logger.info("%s: %.2f M parameters, %d steps", name, parameters / 1e6, recipe.steps)
    started, losses = time.monotonic(), []
    for step in range(recipe.steps):
        rows = np.arange(step * recipe.rows, (step + 1) * recipe.rows)
        losses.append(_step(forward, matrices_and_vectors, optimiser, batch_of(packed, rows), recipe, step))
        if (step + 1) % 100 == 0:
            elapsed_s = time.monotonic() - started
            logger.info("step %d loss %.4f (%.0f s)", step + 1, np.mean(losses[-100:]), elapsed_s)
        if (step + 1) % recipe.save_every == 0 or step + 1 == recipe.steps:
            save(model, tokenizer, out)


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


def _step(
    model: Callable[..., Any],
    parameters: list[torch.nn.Parameter],
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    recipe: Recipe,
    step: int,
) -> float:
    import torch

    for group in optimiser.param_groups:
        group["lr"] = learning_rate(recipe, step)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=batch.attention_mask,
            use_cache=False,
        ).logits
    each = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten(), reduction="none")
    weights = batch.weights.flatten()
    loss = (each * weights).sum() / weights.sum()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.largest_norm)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return loss.item()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a bundled model from a seed.")
    parser.add_argument("model", choices=names())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder (default: the one in the package)")
    parser.add_argument("--steps", type=int, default=DEFAULT_STEPS)
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
    train(given.model, Recipe(given.steps, given.seed), given.out or folder(given.model), compiled=given.compile)


if __name__ == "__main__":
    main()

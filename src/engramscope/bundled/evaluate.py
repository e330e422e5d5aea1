"""Measure the bundled models on held-out prompts: `python -m engramscope.bundled.evaluate`."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engramscope.bundled import folder, names
from engramscope.bundled.corpus import load_sources
from engramscope.bundled.probes import Probe, load_probes
from engramscope.bundled.sentences import Completion
from engramscope.bundled.tokenizer import END_OF_TEXT

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
TABLE_START, TABLE_END = "<!-- table: start -->", "<!-- table: end -->"
PROMPTS_AT_ONCE = 128
DEFAULT_PAGE = Path("docs/models.md")


def load(directory: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a bundled model from its folder, in float32.

    Args:
        directory: Folder with weights, configuration and tokenizer.

    Returns:
        Model in evaluation mode, and tokenizer.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, local_files_only=True, use_safetensors=True
    )
    return model.eval(), tokenizer


def next_token_log_probs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    start_mark: bool,
) -> torch.Tensor:
    """Return log-probabilities of the token that follows each prompt.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        prompts: The prompts.
        start_mark: Put the end-of-text token in front of each.

    Returns:
        Natural logarithms, `[prompts, vocab]`.
    """
    import torch

    front = END_OF_TEXT if start_mark else ""
    parts: list[torch.Tensor] = []
    for first in range(0, len(prompts), PROMPTS_AT_ONCE):
        chunk = [front + prompt for prompt in prompts[first : first + PROMPTS_AT_ONCE]]
        encoded = tokenizer(chunk, return_tensors="pt", padding=True, padding_side="right")
        last = encoded["attention_mask"].sum(dim=1) - 1
        with torch.inference_mode():
            logits = model(**encoded).logits[torch.arange(len(chunk)), last]
        parts.append(logits.log_softmax(dim=-1))
    return torch.cat(parts)


def measure(
    probe: Probe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    start_mark: bool,
) -> float:
    """Return the figure of one probe.

    Args:
        probe: The prompts and what to measure.
        model: A causal language model.
        tokenizer: Its tokenizer.
        start_mark: Put the end-of-text token in front of each prompt.

    Returns:
        Accuracy in [0, 1], or a probability difference in [-1, 1].
    """
    texts = [prompt.prompt for prompt in probe.prompts]
    log_probs = next_token_log_probs(model, tokenizer, texts, start_mark=start_mark)
    if probe.measure == "probability difference":
        return _greater_than(probe.prompts, log_probs.exp(), tokenizer)
    answers = [single_token(tokenizer, prompt.answer) for prompt in probe.prompts]
    hits = log_probs.argmax(dim=-1) == log_probs.new_tensor(answers).long()
    return hits.double().mean().item()


def single_token(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """Return the id of a text that is one token.

    Args:
        tokenizer: The tokenizer.
        text: The text, with its leading space where it has one.

    Returns:
        The token id.

    Raises:
        ValueError: The text is not one token.
    """
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ValueError(f"{text!r} is {len(ids)} tokens, not one")
    return ids[0]


def _greater_than(
    prompts: Sequence[Completion], probabilities: torch.Tensor, tokenizer: PreTrainedTokenizerBase
) -> float:
    years = [single_token(tokenizer, f"{year:02d}") for year in range(100)]
    starts = probabilities.new_tensor([int(prompt.labels["start"]) for prompt in prompts])
    later = probabilities.new_tensor(range(100))[None, :] > starts[:, None]
    of_years = probabilities[:, years]
    signed = (of_years * later).sum(dim=1) - (of_years * ~later).sum(dim=1)
    return signed.mean().item()


def table(directories: dict[str, Path]) -> str:
    """Measure every model on every probe.

    Args:
        directories: Model name to folder.

    Returns:
        A Markdown table.
    """
    probes = load_probes(load_sources())
    columns: list[tuple[str, list[float]]] = []
    for name, directory in directories.items():
        model, tokenizer = load(directory)
        for start_mark in (False, True):
            values = [measure(p, model, tokenizer, start_mark=start_mark) for p in probes]
            columns.append((f"{name}, BOS" if start_mark else name, values))
            logger.info("%s measured", columns[-1][0])
    heads = ["held-out prompts", "never in training", "measure", "n", "required"]
    rows = [[*heads, *(title for title, _ in columns)], ["---"] * (len(heads) + len(columns))]
    for i, probe in enumerate(probes):
        required = "reported" if probe.required is None else f"≥ {probe.required}"
        about = [probe.title, probe.held_out, probe.measure, str(len(probe.prompts)), required]
        rows.append([*about, *(f"{values[i]:.3f}" for _, values in columns)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def write_table(page: Path, text: str) -> None:
    """Put the table between the markers of a page.

    Args:
        page: A Markdown file with both markers.
        text: The table.
    """
    before, rest = page.read_text(encoding="utf-8").split(TABLE_START)
    _, after = rest.split(TABLE_END)
    page.write_text(f"{before}{TABLE_START}\n{text}\n{TABLE_END}{after}", encoding="utf-8")


def main() -> None:
    """Measure the models and write the table."""
    parser = argparse.ArgumentParser(description="Measure the bundled models.")
    parser.add_argument("--page", type=Path, default=DEFAULT_PAGE)
    parser.add_argument("--models", type=Path, help="folder with one folder per model")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    directories = {n: given.models / n if given.models else folder(n) for n in names()}
    text = table(directories)
    logger.info("%s", text)
    write_table(given.page, text)


if __name__ == "__main__":
    main()

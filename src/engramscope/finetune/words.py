"""What a fine-tuning did, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engramscope.report.words import counted, number, seconds, whole


def epoch_line(row: Mapping[str, Any], epochs: int) -> str:
    """One line about an epoch that ended."""
    validation = f"validation loss {row['validation_loss']:.4f} (perplexity {number(row['validation_perplexity'])})"
    if row["epoch"] == 0:
        return f"Before training: {validation}."
    speed = f", {whole(round(row['tokens_per_second']))} tokens/s" if row["tokens_per_second"] else ""
    return f"Epoch {row['epoch']} of {epochs}: training loss {row['train_loss']:.4f}, {validation}{speed}."


def sentences(manifest: Mapping[str, Any]) -> list[str]:
    """What a finished fine-tuning says; one sentence where it is not finished."""
    if manifest["status"] != "done":
        return ["This fine-tuning is not finished; the same command with --resume goes on."]
    return [_perplexity(manifest), _overfitting(manifest), _effort(manifest)]


def _perplexity(manifest: Mapping[str, Any]) -> str:
    before, after = manifest["perplexity"]["before"], manifest["perplexity"]["after"]
    side = manifest["split"]["validation"]
    held_out = f"{counted(side['documents'], 'held-out document')} ({whole(side['tokens'])} tokens)"
    if manifest["validation_loss"]["after"] >= manifest["validation_loss"]["before"]:
        return (
            f"Training did not lower the perplexity on {held_out}: {number(before)} before, {number(after)} after "
            f"epoch {manifest['best_epoch']}, the best."
        )
    return (
        f"Perplexity on {held_out}: {number(before)} before, {number(after)} after epoch {manifest['best_epoch']} of "
        f"{manifest['epochs']}, whose weights are kept."
    )


def _overfitting(manifest: Mapping[str, Any]) -> str:
    early = f" Training stopped early, after {counted(manifest['settings']['patience'], 'epoch')} without a fall."
    early = early if manifest["stopped_early"] else ""
    if manifest["overfitting_epoch"] is None:
        return f"Overfitting point not reached: validation loss was least at the end (epoch {manifest['best_epoch']})."
    return f"Overfitting point: validation loss turns after epoch {manifest['overfitting_epoch']}.{early}"


def _effort(manifest: Mapping[str, Any]) -> str:
    spent = manifest["seconds"]["training"]
    precision, model = manifest["precision"], manifest["model"]
    asked = "" if precision["asked"] == precision["used"] else f" ({precision['asked']} was asked for)"
    share = "" if model["trained"] == model["parameters"] else f"{whole(model['trained'])} of "
    speed = f", {whole(round(manifest['tokens'] / spent))} tokens/s" if spent else ""
    return (
        f"{share}{whole(model['parameters'])} parameters learned from {whole(manifest['tokens'])} tokens in "
        f"{seconds(spent)}{speed} on {manifest['device']} in {precision['used']}{asked}."
    )

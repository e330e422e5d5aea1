"""What a fine-tuning did, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engramscope.report.words import counted, joined, number, seconds, whole

#: begins what is said before a training that is shorter than its warm-up
WARM_UP = "The warm-up of "


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
    said = (_perplexity, warm_up, _overfitting, trained_parts, _effort)
    return [sentence for part in said if (sentence := part(manifest))]


def warm_up(manifest: Mapping[str, Any]) -> str:
    """Said where training ended within the warm-up, so that its learning rate was never reached; else empty."""
    settings, last = manifest["settings"], manifest["history"][-1]
    wanted, reached = settings["learning_rate"], last["learning_rate"]
    if not settings["warmup_steps"] or reached is None or reached >= wanted * (1 - 1e-9):
        return ""
    return (
        f"The learning rate never reached {wanted:g}: the warm-up takes {counted(settings['warmup_steps'], 'step')}, "
        f"the training had {whole(last['step'])}, and the rate ended at {reached:.2g}. "
        f"{shorter_warm_up(last['step'])}"
    )


def shorter_warm_up(steps: int) -> str:
    """What to type for a training of so many steps; a tenth of them is a usual share, and of few steps none."""
    wanted = steps // 10
    return f"--set warmup_steps={wanted} " + ("warms up over a tenth of it." if wanted else "leaves the warm-up out.")


def trained_parts(manifest: Mapping[str, Any]) -> str:
    """Which parameters were trained, and from what, where it was not all of them from what they were; else empty."""
    settings, said = manifest["settings"], []
    if settings.get("only"):
        names = list(settings["only"])
        said.append(f"Only {joined(names, 6)} {'was' if len(names) == 1 else 'were'} trained; all else stays as it was")
    if lora := settings.get("lora"):
        on = f", on {joined(list(lora['targets']), 6)}" if lora["targets"] else ""
        end = "folded into the weights" if settings["merge"] else "left beside the base as an adapter"
        said.append(
            f"Trained were low-rank adapters (LoRA, rank {lora['rank']}, alpha {lora['alpha']:g}{on}), which are {end}"
        )
    if settings.get("random_weights"):
        said.append("Training began from random weights")
    return "".join(f"{sentence}. " for sentence in said).strip()


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

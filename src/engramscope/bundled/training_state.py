"""The state of an unfinished training run on disk, so that it can go on after a stop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

FILE_NAME = "training-state.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def save_state(folder: Path, model: PreTrainedModel, optimiser: torch.optim.Optimizer, step: int) -> None:
    """Write weights, moments of AdamW and the number of steps done, in float32.

    Args:
        folder: Where; made if it is missing.
        model: The model.
        optimiser: An AdamW over the parameters of the model that has made at least one step.
        step: Steps done.
    """
    import torch
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {"steps_done": torch.tensor(step)}
    for name, parameter in model.named_parameters():
        tensors[f"weight/{name}"] = parameter.detach().clone()
        for moment in MOMENTS:
            tensors[f"{moment}/{name}"] = optimiser.state[parameter][moment].clone()
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / (FILE_NAME + ".part")
    save_file(tensors, partial)
    partial.replace(folder / FILE_NAME)


def load_state(folder: Path, model: PreTrainedModel, optimiser: torch.optim.Optimizer) -> int:
    """Put a saved state back.

    Args:
        folder: Where `save_state` left it.
        model: A model of the same architecture; its weights are overwritten.
        optimiser: An AdamW over its parameters.

    Returns:
        Steps done; 0, with nothing changed, where there is no saved state.
    """
    import torch
    from safetensors.torch import load_file

    if not (folder / FILE_NAME).exists():
        return 0
    tensors = load_file(folder / FILE_NAME)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"weight/{name}"])
            optimiser.state[parameter] = {m: tensors[f"{m}/{name}"] for m in MOMENTS}
    return int(tensors["steps_done"].item())

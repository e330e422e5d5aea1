"""Edits of low rank as LoRA adapters: files that peft loads beside the unedited model."""

from __future__ import annotations

import json
from pathlib import Path

from peft import LoraConfig
from safetensors.torch import save
from torch import Tensor

from engramscope.edit.delta import LowRank
from engramscope.edit.edit import Edit
from engramscope.edit.matrices import linear_map
from engramscope.errors import InputError, ResultsError
from engramscope.models.model import Model
from engramscope.results.atomic import disk_sentence, jsonable, write_bytes, write_text
from engramscope.results.folders import refuse_occupied


def export_lora(edit: Edit, model: Model, folder: Path) -> None:
    """Write an edit as a LoRA adapter in float32, W + B A with B A the edit.

    Args:
        edit: one whose deltas are all of low rank.
        model: the model that it was computed on; nothing in it changes.
        folder: a new or empty one.

    Raises:
        InputError: the edit does not fit the model, changes something that is no linear map's weight, or is not of low
            rank.
        ResultsError: the folder is occupied, or the disk refuses.
    """
    folder = Path(folder)
    refuse_occupied(folder)
    edit.ensure_fits(model)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    written_as_is: set[bool] = set()
    for name, delta in edit.deltas.items():
        path, _, which = name.rpartition(".")
        if not isinstance(delta, LowRank) or which != "weight":
            raise InputError(
                f"The edit changes {name} by a whole tensor, and an adapter holds changes of low rank only; export a "
                "checkpoint instead."
            )
        linear = linear_map(model, path)
        # x A ᵀ Bᵀ: A is of the input's side, B of the output's, whichever way the weight is stored
        inner, outer = (delta.left.T, delta.right.T) if linear.stored_as_written else (delta.right, delta.left)
        tensors[f"base_model.model.{path}.lora_A.weight"] = inner.contiguous()
        tensors[f"base_model.model.{path}.lora_B.weight"] = outer.contiguous()
        ranks[path] = inner.shape[0]
        written_as_is.add(linear.stored_as_written)
    if len(written_as_is) != 1:
        raise InputError("The edit changes matrices that are stored in two ways, which one adapter cannot say.")
    _write(folder, _config(model, ranks, fan_in_fan_out=written_as_is.pop()), tensors)


def _config(model: Model, ranks: dict[str, int], *, fan_in_fan_out: bool) -> LoraConfig:
    rank = next(iter(ranks.values()))
    patterns = {path: own for path, own in ranks.items() if own != rank}
    return LoraConfig(
        r=rank, lora_alpha=rank, rank_pattern=patterns, alpha_pattern=dict(patterns), target_modules=list(ranks),
        fan_in_fan_out=fan_in_fan_out, bias="none", task_type="CAUSAL_LM", inference_mode=True, lora_dropout=0.0,
        base_model_name_or_path=model.name, revision=model.revision,
    )  # fmt: skip


def _write(folder: Path, config: LoraConfig, tensors: dict[str, Tensor]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultsError(disk_sentence(folder, error)) from None
    said = jsonable(config.to_dict())
    write_bytes(folder / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))
    # last, because with it peft takes the folder for an adapter
    write_text(folder / "adapter_config.json", json.dumps(said, indent=2, sort_keys=True) + "\n")

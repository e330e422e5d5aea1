"""Editor networks on disk: safetensors, with what they belong to beside the tensors; and trainings that can go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from engramscope.edit.edit import identity
from engramscope.edit.hyper.network import EditorNetwork
from engramscope.edit.hyper.training import Course, Training
from engramscope.edit.matrices import LinearMap
from engramscope.errors import InputError
from engramscope.models.model import Model
from engramscope.results.atomic import jsonable, write_bytes

_SCHEMA = 1
_KEY = "engramscope_editor"
SUFFIX = ".safetensors"
#: files of a training's folder
WEIGHTS, BEST, CHECKPOINT = f"editor{SUFFIX}", f"best{SUFFIX}", f"checkpoint{SUFFIX}"


@dataclass(frozen=True, slots=True)
class Said:
    """What is said of an editor network beside its tensors.

    Attributes:
        editor: its name ("mend").
        model: name, type, dtype and weight hash of the model that it was trained for.
        matrices: name and sizes of each matrix that it edits.
        network: the settings that it is built from.
        trained: what it was trained on, and how well it did.
    """

    editor: str
    model: Mapping[str, Any]
    matrices: tuple[Mapping[str, Any], ...]
    network: Mapping[str, Any]
    trained: Mapping[str, Any]


def said_of(
    editor: str, model: Model, maps: list[LinearMap], network: Mapping[str, Any], trained: Mapping[str, Any]
) -> Said:
    """What is said of a network for this model and these matrices."""
    matrices = tuple({"name": linear.name, "n_in": linear.n_in, "n_out": linear.n_out} for linear in maps)
    return Said(editor, identity(model), matrices, network, trained)


def save_network(network: EditorNetwork, said: Said, path: Path) -> None:
    """Write a network, in full or not at all.

    Raises:
        ResultsError: the disk refuses.
    """
    _write(path, dict(network.state_dict()), {name: getattr(said, name) for name in Said.__dataclass_fields__})


def load_said(path: Path) -> tuple[Said, dict[str, Tensor]]:
    """Read what `save_network` wrote.

    Raises:
        InputError: the file is damaged, or it is no editor network.
    """
    tensors, values = _read(path)
    if "editor" not in values:
        raise InputError(f"{path} holds tensors, but no trained editor; give the folder that train-editor wrote.")
    return Said(**{**values, "matrices": tuple(values["matrices"])}), tensors


def save_checkpoint(training: Training, path: Path) -> None:
    """Write all that a training needs to go on: the network, Adam's moments, and the course."""
    tensors = {f"network|{name}": value for name, value in training.network.state_dict().items()}
    for place, parameter in enumerate(training.network.parameters()):
        for name, value in training.optimiser.state.get(parameter, {}).items():
            tensors[f"adam|{place}|{name}"] = value
    _write(path, tensors, {"course": training.course.plain()})


def load_checkpoint(training: Training, path: Path) -> None:
    """Bring a training to where it was when a checkpoint was written.

    Raises:
        InputError: the file is damaged.
    """
    tensors, values = _read(path)
    if "course" not in values:
        raise InputError(f"{path} is no checkpoint of a training; begin anew in another folder.")
    network = {name.removeprefix("network|"): value for name, value in tensors.items() if name.startswith("network|")}
    training.network.load_state_dict(network)
    for place, parameter in enumerate(training.network.parameters()):
        head = f"adam|{place}|"
        kept = {name.removeprefix(head): value for name, value in tensors.items() if name.startswith(head)}
        if kept:
            training.optimiser.state[parameter] = {name: value.to(parameter.device) for name, value in kept.items()}
    training.course = Course(**values["course"])


def _write(path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    text = json.dumps(jsonable({"schema": _SCHEMA, **values}), ensure_ascii=False, allow_nan=False)
    write_bytes(path, save({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, {_KEY: text}))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(str(path), framework="pt") as file:
            values = json.loads((file.metadata() or {}).get(_KEY, "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  it is no mapping
    except FileNotFoundError:
        raise InputError(f"There is no file {path}.") from None
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is no trained editor, or it is damaged ({error}).") from None
    if not isinstance(values, dict) or values.pop("schema", None) != _SCHEMA:
        raise InputError(f"{path} holds tensors, but no editor that this version of Engramscope can read.")
    return tensors, values


def ensure_fits(said: Said, model: Model, where: Path) -> None:
    """Check that a network was trained for a model, as it is without the edits that are in it.

    Raises:
        InputError: it was trained for another one; says which, and what to do.
    """
    mine = identity(model)
    if said.model["hash"] == mine["hash"]:
        return
    theirs, here = _described(said.model), _described(mine)
    shapes = {name: sorted(value.shape) for name, value in model.hf.named_parameters()}
    strange = [one for one in said.matrices if shapes.get(one["name"]) != sorted((one["n_in"], one["n_out"]))]
    if strange:
        why = f"it has no matrix {strange[0]['name']} of {strange[0]['n_in']} by {strange[0]['n_out']}"
    elif said.model["dtype"] != mine["dtype"]:
        why = f"if it is the same model, load it in {said.model['dtype']}"
    else:
        why = "its matrices have the same shapes, but other values"
    raise InputError(
        f"The editor in {where} was trained for {theirs}, and this is {here}: {why}. An editor is of use only to the "
        f"model that it was trained for; train one: engramscope train-editor {said.editor} --model {model.name}"
    )


def _described(model: Mapping[str, Any]) -> str:
    return f"{model['name']} ({model['type']}, {model['dtype']}, weights {model['hash'][:8]})"


def to_device(network: EditorNetwork, model: Model) -> EditorNetwork:
    """The network where the model is, in float64 if the model is."""
    if model.dtype == torch.float64:
        network = network.double()
    return network.to(model.device)

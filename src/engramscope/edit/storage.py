"""Edits on disk: safetensors with everything else beside the tensors, a whole checkpoint, or an adapter."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from engramscope.edit.applied import applied_to, deltas_in
from engramscope.edit.delta import Delta, Dense, LowRank
from engramscope.edit.edit import Edit
from engramscope.errors import InputError, ResultsError
from engramscope.models.checkpoint import write_checkpoint
from engramscope.models.model import Model
from engramscope.records.fact import Fact
from engramscope.results.atomic import disk_sentence, jsonable, write_bytes
from engramscope.results.folders import refuse_occupied

_SCHEMA = 1
#: types of parameters that edits are added to; those of other types are edited beside them
_WIDE = (torch.float32, torch.float64)
_KEY = "engramscope_edit"
#: where a checkpoint is written before its files take their names
_WORK = ".part"
_FIELDS = ("method", "settings", "seed", "model", "before", "prefixes", "diagnostics", "notes")


def save_edit(edit: Edit, path: Path) -> None:
    """Write an edit as one safetensors file, in full or not at all.

    Raises:
        ResultsError: the disk refuses.
    """
    tensors: dict[str, Tensor] = {}
    for name, delta in edit.deltas.items():
        if isinstance(delta, LowRank):
            # copies: several matrices may be given the same vector, and a file holds no tensor twice
            tensors |= {f"{name}|left": _copy(delta.left), f"{name}|right": _copy(delta.right)}
        else:
            tensors[f"{name}|dense"] = delta.values.contiguous()
    said = {name: getattr(edit, name) for name in _FIELDS}
    said |= {"schema": _SCHEMA, "facts": [asdict(fact) for fact in edit.facts]}
    text = json.dumps(jsonable(said), ensure_ascii=False, allow_nan=False)
    write_bytes(Path(path), save({key: value.cpu() for key, value in tensors.items()}, metadata={_KEY: text}))


def _copy(value: Tensor) -> Tensor:
    return value.clone(memory_format=torch.contiguous_format)


def load_edit(path: str | Path) -> Edit:
    """Read an edit that `save_edit` wrote.

    Raises:
        InputError: there is no such file, it is damaged, or it holds no edit.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            said = json.loads((file.metadata() or {}).get(_KEY, "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  it is no mapping
    except FileNotFoundError:
        raise InputError(f"There is no edit {str(path)!r}.") from None
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is no edit, or it is damaged ({error}).") from None
    if not isinstance(said, dict) or said.get("schema") != _SCHEMA:
        raise InputError(f"{path} holds tensors, but no edit that this version of Engramscope can read.")
    facts = tuple(Fact(**fact) for fact in said["facts"])
    values: dict[str, Any] = {name: said[name] for name in _FIELDS}
    values |= {"prefixes": tuple(said["prefixes"]), "notes": tuple(said["notes"])}
    return Edit(deltas=_deltas(tensors), facts=facts, **values)


def _deltas(tensors: dict[str, Tensor]) -> dict[str, Delta]:
    found: dict[str, Delta] = {}
    for key in tensors:
        name, _, kind = key.rpartition("|")
        if kind == "dense":
            found[name] = Dense(tensors[key])
        elif kind == "left":
            found[name] = LowRank(tensors[key], tensors[f"{name}|right"])
    return found


def export(edit: Edit, model: Model, folder: Path) -> float:
    """Write the edited model as a plain Hugging Face checkpoint, in the dtype of the model.

    Other edits that are in the model are in the checkpoint, too.

    Args:
        edit: the edit.
        model: the model that it was computed on, without the edit.
        folder: a new or empty one.

    Returns:
        The share of the edit that the checkpoint holds: ⟨Δ stored, Δ⟩ / |Δ|², 1 where nothing was rounded away. In half
        precision much of a small edit is; load the model in float32 before it is edited, then.

    Raises:
        InputError: the edit does not fit the model.
        ResultsError: the folder is occupied, or the disk refuses.
    """
    refuse_occupied(folder)
    parameters = dict(model.hf.named_parameters())
    state = {name: value.detach() for name, value in model.hf.state_dict().items()}
    edit.ensure_fits(model)
    if edit in applied_to(model.hf):
        raise InputError("The edit is in the model already; revert it before the edited model is exported.")
    names = {value.data_ptr(): name for name, value in parameters.items()}
    along, square = 0.0, 0.0
    beside = _beside(model)
    for name in dict.fromkeys((*beside, *edit.deltas)):
        old = parameters[name].detach()
        wide = beside.pop(name) if name in beside else old if old.dtype in _WIDE else old.float()
        before, stored = wide.to(old.dtype), wide.to(old.dtype)
        if name in edit.deltas:
            change = edit.deltas[name].dense().to(wide.device, wide.dtype)
            stored = (wide + change).to(old.dtype)
            along += float(((stored.double() - before.double()) * change.double()).sum())
            square += float(change.double().square().sum())
        state |= {key: stored for key, value in state.items() if names.get(value.data_ptr()) == name}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_checkpoint(model.hf, model.tokenizer, folder / _WORK, folder, state_dict=state)
    except SafetensorError as error:
        raise ResultsError(f"{folder} could not be written: {error}.") from None
    except OSError as error:
        raise ResultsError(disk_sentence(folder, error)) from None
    return along / square if square else 1.0


def _beside(model: Model) -> dict[str, Tensor]:
    """In half precision, the parameters that edits in the model change by hooks, with these edits, in float32."""
    parameters = dict(model.hf.named_parameters())
    found: dict[str, Tensor] = {}
    for deltas in deltas_in(model.hf):
        for name, delta in deltas.items():
            if parameters[name].dtype not in _WIDE:
                old = found[name] if name in found else parameters[name].detach().float()
                found[name] = old + delta.dense().to(old.device)
    return found

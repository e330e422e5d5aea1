"""The weights of a model's parts: which tensors they are, how far they moved, and how one model borrows another's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engramscope.errors import ModelError, SiteError
from engramscope.models.anatomy import Anatomy
from engramscope.models.site import GLOBAL_PARTS, LAYER_PARTS, WEIGHTS
from engramscope.registry import nearest

#: parts that together hold every tensor of a model once, in the order of a forward
PARTITION = ("embed", "norms", "attn", "mlp", "final_norm", "head")


@dataclass(frozen=True, slots=True)
class Distance:
    """How far the weights of one part of a model moved.

    Attributes:
        part: a name of `PARTITION`.
        layer: the block; None for parts that exist once.
        parameters: how many numbers the part holds.
        distance: Frobenius norm of the difference, over all tensors of the part together.
        relative: `distance` over the norm of the part before; NaN where that was zero.
        largest: largest absolute difference of a single number.
        share: share of the squared distance of the whole model, in [0, 1]; NaN where nothing moved.
    """

    part: str
    layer: int | None
    parameters: int
    distance: float
    relative: float
    largest: float
    share: float


def weight_tensors(hf: nn.Module) -> dict[str, Tensor]:
    """Every weight and every saved buffer of a model by name; tensors that several modules share appear once."""
    saved = {name: parameter.detach() for name, parameter in hf.named_parameters()}
    kept = hf.state_dict()
    return saved | {name: buffer for name, buffer in hf.named_buffers() if name in kept and name not in saved}


def tensors_of(hf: nn.Module, anatomy: Anatomy, site: str, layer: int | None) -> tuple[str, ...]:
    """Names of the tensors that a weight site stands for.

    `weights:block` is a whole block; `attn`, `norms` and `mlp` are its attention module, its norms outside of it, and
    all the rest, so that the three make up the block. `embed` is everything outside of the blocks but the final norm
    and the head: position embeddings as well. Anything else is the path of a module.

    Args:
        hf: the model of transformers.
        anatomy: its parts.
        site: "weights:" and a part.
        layer: the block; None for what exists once.

    Raises:
        SiteError: no such part, or it holds no weights of its own.
    """
    names, part = tuple(weight_tensors(hf)), site.removeprefix(WEIGHTS)
    if part not in (*LAYER_PARTS, *GLOBAL_PARTS):
        path = part.replace("{layer}", str(layer))
        if path not in (paths := dict(hf.named_modules())):
            known = (*LAYER_PARTS, *GLOBAL_PARTS, *(one for one in paths if one))
            raise SiteError(f"{site}: the model has no part and no module {path!r}{nearest(path, known)}")
        return _some(_under(names, path), site, f"the module {path} holds no weights of its own")
    found = weight_parts(hf, anatomy)
    if part == "block":
        assert layer is not None
        return tuple(name for one in ("norms", "attn", "mlp") for name in found.get((one, layer), ()))
    why = "the model has no such weights"
    if part == "head" and anatomy.final_norm is not None:
        why = "the head shares its weights with the token embedding; weights:embed changes both"
    return _some(found.get((part, layer), ()), site, why)


def differing(own: nn.Module, other: nn.Module) -> frozenset[str]:
    """Names of the tensors of two models that are not equal to the last bit."""
    theirs = weight_tensors(other)
    return frozenset(name for name, value in weight_tensors(own).items() if not torch.equal(value, theirs[name]))


def shape_faults(own: nn.Module, other: nn.Module, names: tuple[str, str]) -> list[str]:
    """Why the weights of two models cannot stand in for each other; empty where they can.

    Args:
        own, other: the models.
        names: how they are called.
    """
    mine, theirs = weight_tensors(own), weight_tensors(other)
    faults = [f"{names[0]} has a tensor {name} and {names[1]} has none." for name in mine if name not in theirs]
    faults += [f"{names[1]} has a tensor {name} and {names[0]} has none." for name in theirs if name not in mine]
    for name in mine.keys() & theirs.keys():
        one, two = mine[name], theirs[name]
        if one.shape != two.shape:
            shapes = (" × ".join(map(str, value.shape)) for value in (one, two))
            faults.append(f"{name} is {' in one and '.join(shapes)} in the other.")
        elif one.device.type == "meta" or two.device.type == "meta":
            faults.append(f'{name} is not in memory; two models are compared without device = "offload".')
        elif (one.dtype, one.device) != (two.dtype, two.device):
            faults.append(f"{name} is {one.dtype} on {one.device} in one and {two.dtype} on {two.device} in the other.")
    return sorted(faults)


def ensure_same_shape(own: nn.Module, other: nn.Module, names: tuple[str, str]) -> None:
    """Refuse two models whose weights cannot stand in for each other.

    Raises:
        ModelError: names the first tensors that differ, and what is often the reason.
    """
    faults = shape_faults(own, other, names)
    if not faults:
        return
    more = [f"... and {len(faults) - 5} more."] if len(faults) > 5 else []
    hint = []
    if any("embed" in fault or ".wte." in fault for fault in faults):
        hint = ["A token that was added before training makes the embedding longer; train without adding one."]
    head = f"{names[0]} and {names[1]} are not two states of one model, so their parts cannot be exchanged:"
    raise ModelError([head, *faults[:5], *more, *hint])


def distances(before: nn.Module, after: nn.Module, anatomy: Anatomy) -> list[Distance]:
    """How far every part of a model moved: ‖W_after − W_before‖ over all tensors of the part, in double precision.

    Args:
        before, after: two models of one shape.
        anatomy: the parts of either.

    Returns:
        One entry for each part that holds weights, in the order of a forward.
    """
    old, new = weight_tensors(before), weight_tensors(after)
    rows = []
    for (part, layer), names in weight_parts(before, anatomy).items():
        moved = [(new[name].double() - old[name].double()) for name in names]
        square = sum(float(one.square().sum()) for one in moved)
        size = sum(float(old[name].double().square().sum()) for name in names)
        largest = max(float(one.abs().max()) if one.numel() else 0.0 for one in moved)
        rows.append((part, layer, sum(one.numel() for one in moved), square, size, largest))
    total = sum(row[3] for row in rows)
    return [
        Distance(part, layer, count, square**0.5, (square / size) ** 0.5 if size else float("nan"), largest,
                 square / total if total else float("nan"))
        for part, layer, count, square, size, largest in rows
    ]  # fmt: skip


@contextmanager
def borrowed(own: nn.Module, other: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Put some tensors of another model into this one for the time of the context; afterwards every bit is back.

    The values are copied in place, so that whatever holds a view of a weight sees the borrowed one.
    """
    mine, theirs = weight_tensors(own), weight_tensors(other)
    kept = {name: mine[name].clone() for name in names}
    try:
        with torch.no_grad():
            for name in kept:
                mine[name].copy_(theirs[name])
        yield
    finally:
        with torch.no_grad():
            for name, value in kept.items():
                mine[name].copy_(value)


def weight_parts(hf: nn.Module, anatomy: Anatomy) -> dict[tuple[str, int | None], tuple[str, ...]]:
    """(part, layer) -> names of its tensors: each tensor in one part, parts as in `PARTITION`, without empty ones."""
    names = tuple(weight_tensors(hf))
    found: dict[tuple[str, int | None], tuple[str, ...]] = {}
    left = dict.fromkeys(names)

    def take(part: str, layer: int | None, chosen: Iterable[str]) -> None:
        taken = tuple(name for name in chosen if name in left)
        for name in taken:
            del left[name]
        if taken:
            found[part, layer] = taken

    for layer, block in enumerate(anatomy.blocks):
        attention = anatomy.attention[layer] if layer < len(anatomy.attention) else None
        attn = () if attention is None else _under(names, attention)
        take("attn", layer, attn)
        take("norms", layer, _norms(hf, names, block))
        take("mlp", layer, _under(names, block))
    take("final_norm", None, () if anatomy.final_norm is None else _under(names, anatomy.final_norm))
    # a head that shares the embedding's tensor has no name of its own, or the embedding's
    head = [name for name in _under(names, anatomy.head) if name not in _under(names, anatomy.embed)]
    take("head", None, head)
    take("embed", None, tuple(left))
    layers = range(len(anatomy.blocks))
    order = [("embed", None), *((part, layer) for layer in layers for part in ("norms", "attn", "mlp"))]
    order += [("final_norm", None), ("head", None)]
    return {key: found[key] for key in order if key in found}


def _norms(hf: nn.Module, names: tuple[str, ...], block: str) -> tuple[str, ...]:
    modules: Mapping[str, Any] = dict(hf.get_submodule(block).named_modules(prefix=block))
    norms = [path for path, module in modules.items() if "norm" in type(module).__name__.lower()]
    return tuple(name for path in norms for name in _under(names, path))


def _under(names: Iterable[str], path: str) -> tuple[str, ...]:
    return tuple(name for name in names if name.startswith(f"{path}."))


def _some(names: tuple[str, ...], site: str, why: str) -> tuple[str, ...]:
    if not names:
        raise SiteError(f"{site} cannot be transplanted: {why}.")
    return names

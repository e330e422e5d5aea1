"""The weights of a model's parts: which tensors they are, how far they moved, and how one model borrows another's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from engramscope.errors import ModelError, SiteError
from engramscope.models.anatomy import Anatomy
from engramscope.models.site import GLOBAL_PARTS, LAYER_PARTS, WEIGHTS
from engramscope.registry import nearest

#: parts that together hold every tensor of a model once, in the order of a forward; `other` is what cannot be placed
PARTITION = ("embed", "norms", "attn", "mlp", "final_norm", "head", "other")
Part: TypeAlias = tuple[str, int | None]


class WithParts(Protocol):
    """What is asked of a model here."""

    @property
    def hf(self) -> Any:
        """The model of transformers."""
        ...

    @property
    def anatomy(self) -> Anatomy:
        """Its parts."""
        ...

    def phase(self, path: str) -> object:
        """When a module has its output: "stem", its block, "tail", or "between" where that is not known."""
        ...


@dataclass(frozen=True, slots=True)
class Distance:
    """How far the weights of one part of a model moved.

    Attributes:
        part: a name of `PARTITION`, or of the set of weights that was asked about.
        layer: the block; None for parts that exist once, and for sets.
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


def tensor_names(hf: nn.Module) -> dict[str, str]:
    """Every name of a weight or saved buffer -> the name that the same tensor has in `weight_tensors`."""
    first: dict[int, str] = {}
    every = [*hf.named_parameters(remove_duplicate=False), *hf.named_buffers(remove_duplicate=False)]
    kept = hf.state_dict()
    return {name: first.setdefault(id(tensor), name) for name, tensor in every if name in kept}


def tensors_of(parts: WithParts, site: str, layer: int | None) -> tuple[str, ...]:
    """Names of the tensors that a weight site stands for.

    `weights:block` is a whole block; `attn`, `norms` and `mlp` are its attention module, its norms outside of it, and
    all the rest, so that the three make up the block. `embed` is everything before the blocks, position embeddings as
    well, and `final_norm` everything between the last block and the head. Anything else is the path of a module. A
    tensor that several modules share moves for all of them.

    Args:
        parts: the model.
        site: "weights:" and a part.
        layer: the block; None for what exists once.

    Raises:
        SiteError: no such part, or it holds no weights of its own.
    """
    hf, anatomy, part = parts.hf, parts.anatomy, site.removeprefix(WEIGHTS)
    names = tensor_names(hf)
    if part == "block":
        assert layer is not None
        return _some(_under(names, anatomy.blocks[layer]), site, "the block holds no weights")
    if part not in (*LAYER_PARTS, *GLOBAL_PARTS):
        path = part.replace("{layer}", str(layer))
        if path not in (paths := dict(hf.named_modules())):
            known = (*LAYER_PARTS, *GLOBAL_PARTS, *(one for one in paths if one))
            raise SiteError(f"{site}: the model has no part and no module {path!r}{nearest(path, known)}")
        return _some(_under(names, path), site, f"the module {path} holds no weights of its own")
    if part == "head" and set(_under(names, anatomy.head)) & set(_under(names, anatomy.embed)):
        why = "the head shares its weights with the token embedding; weights:embed changes both"
        raise SiteError(f"{site} cannot be transplanted: {why}.")
    mine = dict.fromkeys(names[name] for name, place in placed_tensors(parts).items() if place == (part, layer))
    return _some(tuple(mine), site, "the model has no such weights")


def differing(own: nn.Module, other: nn.Module) -> frozenset[str]:
    """Names of the tensors of two models that are not equal."""
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
    if 0 < len(faults) <= 2:  # the embedding, and a head of its own
        hint = ["A token that was added before training makes the embedding longer; train without adding one."]
    head = f"{names[0]} and {names[1]} are not two states of one model, so their parts cannot be exchanged:"
    raise ModelError([head, *faults[:5], *more, *hint])


def distances(before: WithParts, after: nn.Module) -> list[Distance]:
    """How far every part of a model moved: ‖W_after − W_before‖ over all tensors of the part, in double precision.

    Args:
        before: a model and its parts.
        after: another of the same shape.

    Returns:
        One entry for each part that holds weights, in the order of a forward.
    """
    steps = tensor_steps(before.hf, after)
    total = sum(step.square for step in steps.values())
    return [_distance(part, layer, [steps[name] for name in names], total)
            for (part, layer), names in weight_parts(before).items()]  # fmt: skip


def set_distances(
    before: WithParts, after: nn.Module, sets: Mapping[str, Sequence[tuple[str, int | None]]]
) -> dict[str, Distance]:
    """How far sets of weights moved that are transplanted together, such as blocks, windows of layers and modules.

    Args:
        before: a model and its parts.
        after: another of the same shape.
        sets: for each set the weight sites that it is made of, with their layers.

    Returns:
        The distance of each set over all of its tensors, each counted once; `part` is the name of the set.
    """
    steps = tensor_steps(before.hf, after)
    total = sum(step.square for step in steps.values())
    names = {
        key: dict.fromkeys(name for site, layer in places for name in tensors_of(before, site, layer))
        for key, places in sets.items()
    }
    return {key: _distance(key, None, [steps[name] for name in members], total) for key, members in names.items()}


@dataclass(frozen=True, slots=True)
class Step:
    """How far one tensor moved.

    Attributes:
        parameters: how many numbers it holds.
        square: squared Frobenius norm of its change.
        size: squared norm of itself before.
        largest: largest absolute change of a number.
    """

    parameters: int
    square: float
    size: float
    largest: float


def tensor_steps(before: nn.Module, after: nn.Module) -> dict[str, Step]:
    """How far every tensor of a model moved, in double precision."""
    new, steps = weight_tensors(after), {}
    for name, value in weight_tensors(before).items():
        old = value.double()
        moved = new[name].double() - old
        largest = float(moved.abs().max()) if moved.numel() else 0.0
        steps[name] = Step(moved.numel(), float(moved.square().sum()), float(old.square().sum()), largest)
    return steps


def _distance(part: str, layer: int | None, steps: Sequence[Step], total: float) -> Distance:
    square, size = sum(step.square for step in steps), sum(step.size for step in steps)
    return Distance(
        part, layer, sum(step.parameters for step in steps), square**0.5,
        (square / size) ** 0.5 if size else float("nan"), max(step.largest for step in steps),
        square / total if total else float("nan"),
    )  # fmt: skip


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


def weight_parts(parts: WithParts) -> dict[Part, tuple[str, ...]]:
    """(part, layer) -> names of its tensors: each tensor in one part, parts as in `PARTITION`, without empty ones.

    A tensor with several names belongs to the part of the first.
    """
    places, names = placed_tensors(parts), tensor_names(parts.hf)
    first: dict[str, Part] = {}
    for name, place in places.items():
        first.setdefault(names[name], place)
    layers = range(len(parts.anatomy.blocks))
    order: list[Part] = [("embed", None), *((part, layer) for layer in layers for part in ("norms", "attn", "mlp"))]
    order += [("final_norm", None), ("head", None), ("other", None)]
    found = {key: tuple(name for name, place in first.items() if place == key) for key in order}
    return {key: members for key, members in found.items() if members}


def placed_tensors(parts: WithParts) -> dict[str, Part]:
    """Every name of a tensor -> the part that it belongs to under that name."""
    return {name: _place(parts, name) for name in tensor_names(parts.hf)}


def _place(parts: WithParts, name: str) -> Part:
    hf, anatomy = parts.hf, parts.anatomy
    for layer, block in enumerate(anatomy.blocks):
        if name.startswith(f"{block}."):
            attention = anatomy.attention[layer] if layer < len(anatomy.attention) else None
            if attention is not None and name.startswith(f"{_outermost(hf, block, attention)}."):
                return "attn", layer
            return ("norms" if _is_norm(hf.get_submodule(name.rpartition(".")[0])) else "mlp"), layer
    known = (("embed", anatomy.embed), ("head", anatomy.head), ("final_norm", anatomy.final_norm))
    for part, path in known:
        if path is not None and name.startswith(f"{path}."):
            return part, None
    owner = name.rpartition(".")[0]
    if isinstance(hf.get_submodule(owner), nn.Embedding):
        return "embed", None
    return {"stem": "embed", "tail": "final_norm"}.get(str(parts.phase(owner)), "other"), None


def _outermost(hf: nn.Module, block: str, attention: str) -> str:
    """The child of the block that holds the attention, unless it holds the whole block."""
    child = ".".join(attention.split(".")[: block.count(".") + 2])
    inside = sum(1 for _ in hf.get_submodule(child).parameters())
    return child if inside < sum(1 for _ in hf.get_submodule(block).parameters()) else attention


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and next(module.children(), None) is None


def _under(names: Mapping[str, str], path: str) -> tuple[str, ...]:
    """The tensors that have a name below a path."""
    return tuple(dict.fromkeys(first for name, first in names.items() if name.startswith(f"{path}.")))


def _some(names: tuple[str, ...], site: str, why: str) -> tuple[str, ...]:
    if not names:
        raise SiteError(f"{site} cannot be transplanted: {why}.")
    return names

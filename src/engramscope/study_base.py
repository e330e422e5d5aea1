"""The model before training, where a study compares two: loading it, refusing what cannot be compared, its facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from engramscope.errors import StudyError
from engramscope.locate.cells import cells_of
from engramscope.locate.runs import places_of
from engramscope.models import Model, load_model
from engramscope.models.site import is_weights
from engramscope.models.weights import Distance, distances, ensure_same_shape, set_distances
from engramscope.provenance import matters_in_a_forward, model_fingerprints, training_of
from engramscope.results.store import differences
from engramscope.study_file import SweepSection
from engramscope.study_inputs import Inputs, base_of


def load_base(inputs: Inputs) -> Model:
    """The model before training that a study is compared with, held as the study's model is."""
    section = inputs.study.model
    return load_model(
        inputs.base_name,
        dtype=section.dtype,
        device=section.device,
        revision=base_of(inputs.corruption)[1],
        trust_remote_code=section.trust_remote_code,
        allow_pickle=section.allow_pickle,
    )


def ensure_base(inputs: Inputs, model: Model, base: Model | None) -> None:
    """Refuse a base model that nothing is compared with, the lack of one, and one that computes in another way.

    Raises:
        StudyError: says which of the three.
    """
    needed = inputs.corruption.level == "weights"
    if needed and base is None:
        raise StudyError("The corruption base_model needs the model before training; hand it over as base.")
    if base is not None and not needed:
        method = inputs.study.corruption.method
        raise StudyError(f"A base model is compared with by corruption base_model, not by {method!r}.")
    if base is not None:
        ensure_same_shape(model.hf, base.hf, (model.name, base.name))
        old, new = (matters_in_a_forward(one) for one in (base, model))
        if changed := differences(old, new):
            shown = "; ".join(changed[:5])
            raise StudyError(
                f"{base.name} and {model.name} are not configured alike, so their weights mean other things: {shown}."
            )


def prints_of(model: Model, base: Model | None) -> dict[str, Any]:
    """What the numbers depend on of the study's model, and of the one before training where there is one."""
    prints = model_fingerprints(model)
    return prints if base is None else {**prints, "base_weights": base.weight_hash()}


def other_base(model: Model, base: Model) -> str:
    """The name of the model that the training of `model` began from, where that is not `base`; else "".

    Known of models that `engramscope finetune` has made.
    """
    began = training_of(model)
    return "" if began is None or began["weights"] == base.weight_hash() else began["name"]


def moved_weights(model: Model, base: Model) -> list[dict[str, Any]]:
    """How far the weights of every part moved in training, as plain data."""
    return [_plain(row) for row in distances(base, model.hf)]


def moved_transplants(model: Model, base: Model, sweeps: Sequence[SweepSection]) -> list[dict[str, Any]]:
    """How far the weights moved that each transplant of these sweeps carries over, as plain data.

    One row per site, layer (the centre of a window; None for what exists once) and window.
    """
    cells = [cell for sweep in sweeps if is_weights(sweep.site) for cell in cells_of(sweep, model.anatomy, ())]
    places = {(cell.site, cell.layer, cell.window): places_of(cell) for cell in cells}
    found = set_distances(base, model.hf, {str(key): places[key] for key in places})
    return [
        {"site": site, "layer": layer, "window": window,
         **{name: value for name, value in _plain(found[str((site, layer, window))]).items()
            if name not in ("part", "layer")}}
        for site, layer, window in places
    ]  # fmt: skip


def _plain(row: Distance) -> dict[str, Any]:
    return {key: None if value != value else value for key, value in asdict(row).items()}

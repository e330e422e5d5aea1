"""An editor that is a trained network: found, checked against the model, and asked for a change."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from engramscope.edit._base import Editor, EditorOptions, Progress
from engramscope.edit.delta import LowRank, outer
from engramscope.edit.edit import Edit
from engramscope.edit.frozen import frozen
from engramscope.edit.hyper.factors import Factors, edited
from engramscope.edit.hyper.files import BEST, CHECKPOINT, SUFFIX, WEIGHTS, Said, ensure_fits, load_said, to_device
from engramscope.edit.hyper.gradients import token_pairs
from engramscope.edit.hyper.maps import edited_maps
from engramscope.edit.hyper.network import EditorNetwork, condition_of, seeded
from engramscope.edit.hyper.settings import Corpus, TrainingSettings
from engramscope.edit.matrices import LinearMap, linear_map
from engramscope.edit.tokens import encode_facts, logits_of, rows_of, target_nll
from engramscope.errors import InputError
from engramscope.models.model import Model
from engramscope.records.fact import Fact

#: where trained editors are looked for, and put, where nobody says otherwise; in the working folder
FOLDER = Path("editors")


class TrainedOptions(EditorOptions):
    """Options of an editor that is a trained network.

    Attributes:
        weights: the folder that `engramscope train-editor` wrote, or the file in it; None looks in `editors/`.
        corpus: of which corpus an editor is looked for there: "counterfact" for KE-CF and MEND-CF.
        strength: the change is multiplied by this; 1 is what was trained.
    """

    weights: Path | None = None
    corpus: Corpus = "text"
    strength: Annotated[float, Field(gt=0)] = 1.0


class TrainedEditor(Editor):
    """An editor that is a trained network.

    Class attributes:
        Network: the class of the settings that the network is built from.
    """

    Options = TrainedOptions
    trained = True
    Network: ClassVar[type[BaseModel]]

    def __init__(self, name: str, options: EditorOptions, preset: str | None = None) -> None:
        super().__init__(name, options, preset)
        self._ready: tuple[object, Path, int, Said, EditorNetwork] | None = None

    @classmethod
    @abstractmethod
    def build(cls, settings: BaseModel, model: Model, maps: list[LinearMap]) -> EditorNetwork:
        """An untrained network for these matrices; its weights are drawn from the global generator."""

    @classmethod
    @abstractmethod
    def training_defaults(cls, model: Model) -> Mapping[str, Any]:
        """Settings of the network and its training, where they are not those of `TrainingSettings`."""

    def places(self, model: Model) -> tuple[str, ...]:
        """The matrices of the network in the place where it is looked for; of an untrained one, those of its default.

        Raises:
            InputError: the network is of another editor or model, or the MLPs of the model cannot be edited.
        """
        file = self._file(model)
        if not file.is_file():
            return tuple(linear.name for linear in edited_maps(model, TrainingSettings().blocks))
        return tuple(one["name"] for one in self._said(model, file)[0].matrices)

    def _compute(self, model: Model, facts: list[Fact], seed: int, progress: Progress | None) -> Edit:
        del progress  # one forward and one backward
        ((ask,),) = encode_facts(model, facts)
        place, said, network = self._trained(model)
        maps = [linear_map(model, one["name"].removesuffix(".weight")) for one in said.matrices]
        rows = rows_of([ask], model.device)
        pairs, before = token_pairs(model, maps, rows)
        options = self.options
        assert isinstance(options, TrainedOptions)
        with frozen(model.hf), torch.no_grad():
            given = network(pairs, condition_of(model, [ask]))
            changes = [Factors(one.left, options.strength * one.right) for one in given]
            with edited(maps, changes):
                after = target_nll(logits_of(model, rows), rows)
        deltas = {linear.name: _thin(linear, change) for linear, change in zip(maps, changes, strict=True)}
        found = {"id": facts[0].id, "nll_before": float(before), "nll_after": float(after)}
        diagnostics = {"facts": [found], "weights": str(place), "trained": dict(said.trained)}
        return self.edit(model, facts, deltas, seed, diagnostics=diagnostics)

    def _trained(self, model: Model) -> tuple[Path, Said, EditorNetwork]:
        """The network of this model.

        Raises:
            InputError: there is none, its training was not finished, or it is of another editor or model.
        """
        place = self._place(model)
        written = place.stat().st_mtime_ns
        if self._ready is None or self._ready[:3] != (model.hf, place, written):
            said, tensors = self._said(model, place)
            maps = [linear_map(model, one["name"].removesuffix(".weight")) for one in said.matrices]
            settings = self.Network.model_validate(said.network)
            network = seeded(lambda: self.build(settings, model, maps), 0)
            network.load_state_dict(tensors)
            self._ready = (model.hf, place, written, said, to_device(network, model).eval())
        ensure_fits(self._ready[3], model, place)
        return place, self._ready[3], self._ready[4]

    def _said(self, model: Model, file: Path) -> tuple[Said, dict[str, Tensor]]:
        """What is in a file, which must be of this editor and for this model."""
        said, tensors = load_said(file)
        if said.editor != self.name:
            raise InputError(f"{file} holds the editor {said.editor!r}, and {self.name!r} was asked for.")
        ensure_fits(said, model, file)
        return said, tensors

    def _file(self, model: Model) -> Path:
        """Where the trained network is looked for."""
        options = self.options
        assert isinstance(options, TrainedOptions)
        place = options.weights or default_folder(self.name, options.corpus, model)
        return place if place.is_file() or place.suffix == SUFFIX else place / WEIGHTS

    def _place(self, model: Model) -> Path:
        """The file with the trained network, which must be there."""
        file, options = self._file(model), self.options
        assert isinstance(options, TrainedOptions)
        if file.is_file():
            return file
        place = out = file.parent
        command = f"engramscope train-editor {self.name} --model {model.name} --on {options.corpus} --out {out}"
        if (place / CHECKPOINT).is_file() or (place / BEST).is_file():
            raise InputError(
                f"The training of the editor {self.name!r} in {place} is not finished. Go on: {command} --resume"
            )
        raise InputError(
            f"The editor {self.name!r} is a network that has to be trained for a model, and there is no trained one "
            f"for {model.name} in {place}. Train it: {command}"
        )


def default_folder(editor: str, corpus: Corpus, model: Model) -> Path:
    """Where an editor is looked for where nobody said: "editors/mend-cf-gpt2-xl" in the working folder."""
    name = re.sub(r"[^\w.]+", "-", Path(model.name).name).strip("-.") or "model"
    return FOLDER / f"{editor}{'-cf' if corpus == 'counterfact' else ''}-{name}"


def _thin(linear: LinearMap, change: Factors) -> LowRank:
    """The delta of one edit without the outer products that are 0."""
    left, right = change.left[0], change.right[0]
    used = (left != 0).any(-1) & (right != 0).any(-1)
    return outer(linear, left[used], right[used])

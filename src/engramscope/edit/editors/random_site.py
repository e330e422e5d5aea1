"""Control: the edit of ROME at a place drawn at random, to tell what the place adds to the method."""

from __future__ import annotations

import zlib
from typing import ClassVar, Literal

import numpy as np

from engramscope.edit._base import Editor, EditorOptions, Progress
from engramscope.edit.edit import Edit
from engramscope.edit.keys import with_prefixes
from engramscope.edit.rank_one import Place, RankOneOptions, rank_one, rome_place, settled_rome
from engramscope.edit.solvers import Known
from engramscope.errors import InputError
from engramscope.models.model import Model
from engramscope.records.fact import Fact


class RandomSiteOptions(RankOneOptions):
    """Options of ROME, and where the control is free.

    Attributes:
        position: "usual" is the token that ROME edits; "random" draws one of the prompt's other tokens.
        layer: the layer that is not to be drawn; by default the one that ROME edits.
    """

    position: Literal["usual", "random"] = "usual"


class RandomSite(Editor):
    """ROME's rank-one edit at a layer drawn from all but the usual one, and, if asked for, at another token.

    The draw depends on the seed and on the fact, so each fact has a place of its own, whatever stands beside it. If
    edits here work as well as at the usual place, the success of an edit says nothing about where a fact is kept
    (Hase et al. 2023; Wang and Veitch 2025).
    """

    Options: ClassVar[type[EditorOptions]] = RandomSiteOptions
    source = "Hase et al. 2023 (Does Localization Inform Editing?); Wang and Veitch 2025"
    control = True

    def __init__(self, name: str, options: EditorOptions, preset: str | None = None) -> None:
        super().__init__(name, options, preset)
        self._known = Known()

    def settled(self, model: Model) -> EditorOptions:
        """The options with what ROME has for this model; `layer` is the one that is not to be drawn.

        Raises:
            InputError: there is no such layer.
        """
        return settled_rome(model, self.options)

    def _compute(self, model: Model, facts: list[Fact], seed: int, progress: Progress | None) -> Edit:
        assert isinstance(self.options, RandomSiteOptions)
        options, usual, _ = rome_place(model, self.options)
        place = drawn_place(model, facts[0], usual, seed, other_token=self.options.position == "random")
        where = "" if place.from_end == usual.from_end else " and a token drawn beside it"
        note = (
            f"This is a control: the edit was written at a layer drawn at random{where}, not at layer {usual.layer}, "
            "which ROME edits."
        )
        return rank_one(self, model, facts[0], place, options, seed, self._known, notes=[note], progress=progress)


def drawn_place(model: Model, fact: Fact, usual: Place, seed: int, *, other_token: bool) -> Place:
    """A layer, and perhaps a token, other than the usual ones.

    Args:
        model: the model.
        fact: the fact; each has its own draw.
        usual: what is not to be drawn.
        seed: the same seed gives the same place.
        other_token: draw the token, too, among those of the prompt.

    Raises:
        InputError: the model has one layer, or the prompt one token.
    """
    draw = np.random.default_rng([seed, zlib.crc32(f"{fact.prompt}|{fact.target}".encode())])
    layers = [layer for layer in range(model.anatomy.n_layers) if layer != usual.layer]
    if not layers:
        raise InputError(f"{model.name} has one layer, so there is no other one to edit as a control.")
    layer = int(draw.choice(layers))
    if not other_token:
        return Place(layer, usual.from_end)
    (ask,) = with_prefixes(model, [fact], ())[0]
    assert ask.subject is not None
    size = len(ask.prompt)
    taken = usual.from_end or size - ask.subject
    tokens = [count for count in range(1, size - ask.leading + 1) if count not in (taken, size - ask.subject)]
    if not tokens:
        raise InputError(f"{fact.prompt!r} has no token beside the one that is usually edited, so none can be drawn.")
    return Place(layer, int(draw.choice(tokens)))


COMPONENT = RandomSite

"""What an editor is: facts and a model in, an edit out, and the model as it was."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict

from engramscope.edit.applied import applied_to
from engramscope.edit.delta import Delta
from engramscope.edit.edit import Edit, combined, fingerprint, identity
from engramscope.edit.frozen import evaluating
from engramscope.errors import InputError
from engramscope.models.model import Model
from engramscope.records.fact import Fact, ensure_facts

#: (what, done, total)
Progress = Callable[[str, int, int], None]


class EditorOptions(BaseModel):
    """Options of an editor; a component's own class extends it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Editor(ABC):
    """An editor: `compute` returns what it would add to a model's parameters, and changes nothing.

    Class attributes:
        Options: the class of its options; the defaults are the corrected method, not a faithful copy of a release.
        presets: named sets of options; one that is faithful to a release is called after it ("rome-2022").
        source: paper and equation.
        joint: "one" computes an edit for each fact, each with those before it in place; "many" solves for all at once.
        trained: it needs a network that was trained for the model (`engramscope train-editor`).
        control: it is no method but a control.
    """

    Options: ClassVar[type[EditorOptions]] = EditorOptions
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    source: ClassVar[str] = ""
    joint: ClassVar[Literal["one", "many"]] = "one"
    trained: ClassVar[bool] = False
    control: ClassVar[bool] = False

    def __init__(self, name: str, options: EditorOptions, preset: str | None = None) -> None:
        self.name, self.options, self.preset = name, options, preset

    def compute(
        self, model: Model, facts: Sequence[Fact] | Fact, *, seed: int = 0, progress: Progress | None = None
    ) -> Edit:
        """What the editor would add to the model's parameters so that it states the facts.

        The model is not changed, nor its gradients, its mode, or any generator of random numbers.

        Args:
            model: the model; edits that are in it already count as part of it.
            facts: one or several.
            seed: of everything that is drawn.
            progress: called with (what, done, total).

        Raises:
            InputError: the facts or the options do not go with the model; a sentence says what to do.
        """
        given = [facts] if isinstance(facts, Fact) else list(facts)
        ensure_facts(given)
        self._ensure(model, given)
        # whatever the caller's context is: gradients are needed, and in full precision
        with torch.inference_mode(False), torch.autocast(model.device.type, enabled=False), evaluating(model.hf):
            if self.joint == "many":
                return self._compute(model, given, seed, progress)
            return self._one_by_one(model, given, seed, progress)

    def _one_by_one(self, model: Model, given: list[Fact], seed: int, progress: Progress | None) -> Edit:
        """An edit for each fact, each with those before it in place, as one.

        Those before it are in the model as one edit, so that memory does not grow with the number of facts.
        """
        if len(given) == 1:
            return self._compute(model, given, seed, progress)
        found: Edit | None = None
        in_place: Edit | None = None
        try:
            for done, fact in enumerate(given):
                if progress:
                    progress("edits", done, len(given))
                if found is not None:
                    found.apply(model, anyway=in_place is not None)
                    if in_place is not None:
                        in_place.revert(model)
                    in_place = found
                new = self._compute(model, [fact], seed, None)
                found = new if found is None else combined([found, new])
        finally:
            for edit in (found, in_place):
                if edit is not None and edit in applied_to(model.hf):
                    edit.revert(model)
        if progress:
            progress("edits", len(given), len(given))
        assert found is not None
        return found

    def _ensure(self, model: Model, facts: Sequence[Fact]) -> None:  # noqa: B027  most editors refuse nothing of their own
        """Refuse sound facts, or a model, that this editor cannot work on; called with all of them before the first."""

    def settled(self, model: Model) -> EditorOptions:
        """The options that an edit of this model is computed with: what nobody gave has the model's own value.

        Raises:
            InputError: the editor cannot edit this model; a sentence says why, and what to do.
        """
        del model
        return self.options

    def places(self, model: Model) -> tuple[str, ...]:
        """Names of the parameters that an edit of this model changes; empty where only the edit itself can tell.

        Raises:
            InputError: the editor cannot edit this model; a sentence says why, and what to do.
        """
        del model
        return ()

    @abstractmethod
    def _compute(self, model: Model, facts: list[Fact], seed: int, progress: Progress | None) -> Edit:
        """The edit for sound facts: one fact where `joint` is "one"."""

    def edit(
        self, model: Model, facts: Sequence[Fact], deltas: Mapping[str, Delta], seed: int, *,
        prefixes: Sequence[str] = (), diagnostics: Mapping[str, Any] | None = None, notes: Sequence[str] = (),
    ) -> Edit:  # fmt: skip
        """An edit by this editor, with everything that can be said about it from here.

        Args:
            model: the model that it was computed on.
            facts: what was asked for.
            deltas: name of a parameter -> what is added.
            seed: as given to `compute`.
            prefixes: texts that were put before the prompts.
            diagnostics: plain numbers, texts and lists; "facts" holds a mapping for each fact.
            notes: sentences about what a user should know.

        Raises:
            InputError: what is to be added is not finite.
        """
        parameters = dict(model.hf.named_parameters())
        if damaged := [name for name, delta in deltas.items() if not math.isfinite(delta.norm())]:
            raise InputError(
                f"What {self.name!r} would add to {damaged[0]} is not finite; load the model in float32, or choose "
                "smaller steps."
            )
        settings = {"editor": self.name, "preset": self.preset, **self.settled(model).model_dump(mode="json")}
        before = {name: fingerprint(parameters[name]) for name in deltas}
        return Edit(self.name, dict(deltas), tuple(facts), settings, seed, identity(model), before, tuple(prefixes),
                    dict(diagnostics or {}), tuple(notes))  # fmt: skip

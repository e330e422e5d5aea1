"""The editors side by side: what each is, and whether it can edit a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from engramscope.edit.catalogue import describe_editor, editor_names, make_editor
from engramscope.edit.hyper.editor import default_folder
from engramscope.edit.hyper.files import WEIGHTS
from engramscope.edit.hyper.settings import Corpus
from engramscope.edit.matrices import down_projection
from engramscope.errors import InputError
from engramscope.models.model import Model


@dataclass(frozen=True, slots=True)
class EditorFacts:
    """What is to be known of an editor before it is used.

    Attributes:
        name: how it is asked for.
        summary: the first line of its documentation.
        many: it solves for many facts at once; else each fact is an edit of its own, with those before it in place.
        trained: it needs a network that was trained for the model.
        control: it is no method but a control.
        presets: names of its sets of options.
        options: option -> default.
        source: paper and equation.
    """

    name: str
    summary: str
    many: bool
    trained: bool
    control: bool
    presets: tuple[str, ...]
    options: dict[str, object]
    source: str


def list_editors() -> list[EditorFacts]:
    """Every editor, sorted by name."""
    found = []
    for name in editor_names():
        editor = make_editor(name)
        options = editor.options.model_dump(mode="json")
        found.append(
            EditorFacts(name, describe_editor(name), editor.joint == "many", editor.trained, editor.control,
                        tuple(editor.presets), options, editor.source)
        )  # fmt: skip
    return found


@dataclass(frozen=True, slots=True)
class Support:
    """Whether an editor can edit a model.

    Attributes:
        ready: it can, as things are.
        why: why not, or what is to be done first; where it can, which of its networks there are.
        places: names of the parameters that it changes, with its defaults; empty where only an edit can tell.
    """

    ready: bool
    why: str = ""
    places: tuple[str, ...] = ()


def support(model: Model, editor: EditorFacts) -> Support:
    """Whether an editor can edit a model, with its defaults."""
    try:
        for layer in range(model.anatomy.n_layers):
            down_projection(model, layer)
        places = make_editor(editor.name).places(model)
    except InputError as error:
        return Support(False, error.faults[0])
    return _trained(model, editor, places) if editor.trained else Support(True, "", places)


def _trained(model: Model, editor: EditorFacts, places: tuple[str, ...]) -> Support:
    """Which of an editor's networks there are where they are looked for."""
    there = [corpus for corpus in get_args(Corpus) if (default_folder(editor.name, corpus, model) / WEIGHTS).is_file()]
    if not there:
        return Support(
            False,
            f"Train it first: engramscope train-editor {editor.name} --model {model.name} --on counterfact "
            f"({editor.name}-cf), or --on text ({editor.name}).",
        )
    names = {"counterfact": f"{editor.name}-cf", "text": editor.name}
    return Support(True, f"--method {' or '.join(names[corpus] for corpus in there)}", places)

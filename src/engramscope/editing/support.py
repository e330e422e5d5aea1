"""The editors side by side: what each is, and whether it can edit a model."""

from __future__ import annotations

from dataclasses import dataclass

from engramscope.edit.catalogue import describe_editor, editor_names, make_editor
from engramscope.edit.hyper.editor import default_folder
from engramscope.edit.hyper.files import WEIGHTS
from engramscope.edit.matrices import down_projection
from engramscope.errors import SiteError
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
        why: why not, or what is to be done first; empty where it can.
    """

    ready: bool
    why: str = ""


def support(model: Model, editor: EditorFacts) -> Support:
    """Whether an editor can edit a model."""
    try:
        for layer in range(model.anatomy.n_layers):
            down_projection(model, layer)
    except SiteError as error:
        return Support(False, error.faults[0])
    if not editor.trained:
        return Support(True)
    folders = {corpus: default_folder(editor.name, corpus, model) for corpus in ("text", "counterfact")}
    there = [corpus for corpus, folder in folders.items() if (folder / WEIGHTS).is_file()]
    if there:
        return Support(True)
    return Support(False, f"Train it first: engramscope train-editor {editor.name} --model {model.name}")

"""Training of the networks that a table needs and that are not there yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from engramscope.edit._base import Editor
from engramscope.edit.hyper.editor import TrainedEditor, TrainedOptions, default_folder
from engramscope.edit.hyper.files import WEIGHTS
from engramscope.edit.hyper.run import train_editor
from engramscope.edit.hyper.settings import MOST_PASSAGES
from engramscope.errors import InputError
from engramscope.models.model import Model
from engramscope.provenance import machine, versions
from engramscope.records.bundled import bundled_records
from engramscope.records.bundled_texts import training_texts

Progress = Callable[[str, int, int], None]


def train_missing(model: Model, editors: Mapping[str, Editor], progress: Progress | None = None) -> list[str]:
    """Train each network that one of the editors needs and that is not where it is looked for.

    On CounterFact a network learns from the training split of the bundled records, else from bundled texts that name
    nobody of the test split. A training that was stopped goes on.

    Args:
        model: a bundled model.
        editors: label -> editor; those that need no training, or name their weights, are passed over.
        progress: called with (what, done, total).

    Returns:
        Sentences about the trainings that were made.

    Raises:
        InputError: the model is not bundled, so there is nothing to train on.
    """
    said: list[str] = []
    for editor in editors.values():
        options = editor.options
        if not isinstance(editor, TrainedEditor) or not isinstance(options, TrainedOptions) or options.weights:
            continue
        folder = default_folder(editor.name, options.corpus, model)
        if (folder / WEIGHTS).is_file():
            continue
        if model.source != "bundled":
            raise InputError(
                f"{editor.name} can be trained here on the bundled data only, and they are about people whom only the "
                f"bundled models know; for {model.name}: engramscope train-editor {editor.name} --model {model.name}"
            )
        data: dict[str, Any] = {"records": bundled_records("train")} if options.corpus == "counterfact" else {
            "texts": training_texts(MOST_PASSAGES)
        }  # fmt: skip
        found = train_editor(
            editor.name, model, folder, on=options.corpus, source="bundled", resume=True,
            provenance={"versions": versions(), "machine": machine()}, progress=progress, **data,
        )  # fmt: skip
        said += found.sentences()
    return said

"""How an editor network is trained: one checked set of settings; the published ones are the editors' own."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from engramscope.edit.hyper.examples import Continuation, Locality
from engramscope.errors import InputError, StudyError, UnknownNameError
from engramscope.options import parse_options
from engramscope.registry import nearest

Corpus = Literal["counterfact", "text"]
#: passages of text that are enough for a training
MOST_PASSAGES = 2000
#: models narrower than this get the values that were found for small models
SMALL = 1024


class TrainingSettings(BaseModel):
    """Settings of a training; the defaults are for models narrower than 1,024.

    Attributes:
        blocks: the MLPs of so many blocks are edited, counted from the last.
        learning_rate: of Adam.
        alpha_rate: of α, the factor of the change that MEND learns.
        decay: let both rates fall to 0 in a straight line over the second half of the steps.
        steps: of Adam, at most.
        batch: edits that share a pass; each is made by itself.
        accumulate: passes whose gradients are averaged before a step.
        clip: the gradient is scaled down to this norm.
        edit_weight, locality_weight: the loss is edit_weight · NLL + locality_weight · KL.
        texts: local texts for each edit and step.
        mixed: how often the target is exchanged for another one: that of another record of the relation, or a piece of
            yet another passage. This makes many edits of few examples; the released trainings have nothing like it.
        locality: from records, their neighbourhood prompts, or prompts about something else.
        tokens: of the target, where an editor is trained on text.
        continuation: the target on text: a piece of another passage, or drawn from the model. A small model is so sure
            of what it says that what it draws itself asks for next to no edit.
        longest: tokens of a passage.
        validation: share of the subjects, or passages, that is held out.
        validation_most: at most so many held-out examples are looked at.
        validate_every: steps between two looks.
        patience: training ends after so many looks without a lower loss.
        seed: of the network's first weights and of everything that is drawn.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    blocks: Annotated[int, Field(ge=1)] = 3
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 1e-3
    alpha_rate: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    decay: bool = True
    steps: Annotated[int, Field(ge=1)] = 400
    batch: Annotated[int, Field(ge=1)] = 8
    accumulate: Annotated[int, Field(ge=1)] = 1
    clip: Annotated[float, Field(gt=0)] = 100.0
    edit_weight: Annotated[float, Field(ge=0)] = 1.0
    locality_weight: Annotated[float, Field(ge=0)] = 1.0
    texts: Annotated[int, Field(ge=1)] = 2
    mixed: Annotated[float, Field(ge=0, le=1)] = 0.5
    locality: Locality = "neighbourhood"
    tokens: Annotated[int, Field(ge=1)] = 1
    continuation: Continuation = "other"
    longest: Annotated[int, Field(ge=4)] = 64
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    validation_most: Annotated[int, Field(ge=1)] = 48
    validate_every: Annotated[int, Field(ge=1)] = 50
    patience: Annotated[int, Field(ge=1)] = 5
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


def corpus_named(text: str) -> Corpus:
    """The corpus of this name.

    Raises:
        UnknownNameError: there is none; names the nearest one.
    """
    found: dict[str, Corpus] = {"counterfact": "counterfact", "text": "text"}
    if text not in found:
        raise UnknownNameError(f"unknown corpus {text!r}{nearest(text, tuple(found))}")
    return found[text]


def resolved(
    editor: str, network: type[BaseModel], defaults: Mapping[str, Any], sets: Sequence[str], given: Mapping[str, Any]
) -> tuple[TrainingSettings, BaseModel]:
    """The settings of a training and of the network that is trained.

    Args:
        editor: its name.
        network: the class of the network's settings.
        defaults: values that this editor has for this model; those of both classes.
        sets: "steps=500", "rank=64"; read as TOML, and as text where it is none.
        given: the same as values; these win over the defaults, and `sets` over both.

    Raises:
        StudyError: unknown settings (with the nearest one) and values out of range, each of them.
        InputError: something that is not of the form key=value.
    """
    values = {**defaults, **given, **dict(_pair(text) for text in sets)}
    known = (*TrainingSettings.model_fields, *network.model_fields)
    faults = [
        f"training of {editor!r}: unknown setting {key!r}{nearest(key, known)}" for key in values if key not in known
    ]
    found: list[BaseModel] = []
    for kind in (TrainingSettings, network):
        try:
            mine = {key: value for key, value in values.items() if key in kind.model_fields}
            found.append(parse_options("training of", editor, kind, mine))
        except StudyError as error:
            faults += error.faults
    if faults:
        raise StudyError(faults)
    assert isinstance(found[0], TrainingSettings)
    return found[0], found[1]


def _pair(text: str) -> tuple[str, Any]:
    key, equals, raw = (part.strip() for part in text.partition("="))
    if not equals or not key:
        raise InputError(f"--set {text!r} is not of the form key=value, for example --set steps=500.")
    try:
        return key, tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return key, raw

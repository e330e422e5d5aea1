"""Editors as they are asked for on the command line: names, presets, settings."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from engramscope.edit._base import Editor
from engramscope.edit.catalogue import editor_names, make_editor
from engramscope.errors import InputError, UnknownNameError
from engramscope.models.model import Model
from engramscope.registry import nearest

#: what a column may be called: it becomes the name of a file
_LABEL = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_+.-]*")
_ALL = "all"
#: the model without an edit
_TAKEN = "none"
#: the order of the published table, and what came after it; then all others
_ORDER = ("ft", "ft_l", "kn", "ke", "mend", "rome", "memit", "alphaedit")


def settings_of(sets: Sequence[str]) -> dict[str, Any]:
    """Options from "key=value" texts; a value is read as JSON where it is any, else as text.

    Raises:
        InputError: a text has no key, or a key comes twice; every fault.
    """
    found: dict[str, Any] = {}
    faults: list[str] = []
    for text in sets:
        key, sign, value = text.partition("=")
        key = key.strip()
        if not sign or not key:
            faults.append(f"A setting is written key=value, for example steps=30; got {text!r}.")
        elif key in found:
            faults.append(f"The setting {key!r} is given twice.")
        else:
            found[key] = _value(value.strip())
    if faults:
        raise InputError(faults)
    return found


def chosen_editors(names: Sequence[str], sets: Sequence[str] = ()) -> dict[str, Editor]:
    """The editors of a comparison by their labels.

    Args:
        names: "rome", "rome:rome-2022" (with a preset), "rome-2022" (a preset that one editor has), "mine=rome" (under
            another label); "all" for every editor with its defaults, and for networks with each of their presets.
        sets: options, "label.key=value".

    Raises:
        UnknownNameError: no such editor, with the nearest name.
        InputError: a label comes twice or is none, or an option is wrong; every fault.
    """
    presets = _presets()
    specs = [_spec(text, presets) for name in names for text in (_all(presets) if name.strip() == _ALL else (name,))]
    labels = [label for label, _, _ in specs]
    faults = [
        f"{label!r} is named twice; give one of them another label, as in {label}-2={label}."
        for label in dict.fromkeys(labels)
        if labels.count(label) > 1
    ]
    faults += [
        f"{label!r} cannot be a label: letters, digits, and + - _ . only, and not {_TAKEN!r}."
        for label in labels
        if not _LABEL.fullmatch(label) or label == _TAKEN
    ]
    known = editor_names()
    faults += [f"Unknown editor {name!r}{nearest(name, known)}" for _, name, _ in specs if name not in known]
    if not specs:
        faults.append(f"No editor is named. Known: {', '.join(known)}.")
    if faults:
        raise UnknownNameError(faults)
    options = _by_label(sets, labels)
    made: dict[str, Editor] = {}
    for label, name, preset in specs:
        try:
            made[label] = make_editor(name, options[label], preset=preset)
        except InputError as error:
            faults += error.faults
    if faults:
        raise InputError(faults)
    return made


def one_editor(name: str, sets: Sequence[str] = (), *, preset: str | None = None, layers: str | None = None) -> Editor:
    """The editor of a single edit.

    Args:
        name: "rome", or a preset that one editor has ("rome-2022").
        sets: options, "key=value".
        preset: a preset of it.
        layers: the layer to edit, or several ("3,4,5") where the editor takes several.

    Raises:
        UnknownNameError: no such editor or preset, with the nearest name.
        InputError: an option is wrong, or the editor takes no layer; every fault.
    """
    _, plain, found = _spec(name, _presets())
    if found is not None and preset is not None and found != preset:
        raise InputError(f"Two presets are asked for, {found!r} and {preset!r}; name one.")
    options = settings_of(sets)
    if layers is not None:
        options |= _layers(plain, layers, options)
    return make_editor(plain, options, preset=preset or found)


def editor_settings(editor: Editor, model: Model) -> dict[str, Any]:
    """What identifies an editor of a model: its name and the options that its edits are computed with.

    Raises:
        SiteError: its options do not go with the model.
    """
    return {"editor": editor.name, "preset": editor.preset, **editor.settled(model).model_dump(mode="json")}


def _spec(text: str, presets: Mapping[str, Sequence[str]]) -> tuple[str, str, str | None]:
    """Label, name and preset of "label=name:preset"; a label that nobody gave is made of the others."""
    label, sign, rest = (part.strip() for part in text.partition("="))
    name, colon, preset = (part.strip() for part in (rest if sign else label).partition(":"))
    if not colon and name not in editor_names():
        owners = [editor for editor, known in presets.items() if name.replace("_", "-") in known]
        if len(owners) == 1:
            name, colon, preset = owners[0], ":", name.replace("_", "-")
    if not sign:
        label = preset if colon and preset.startswith(f"{name}-") else f"{name}-{preset}" if colon else name
    return label, name, preset if colon else None


def _presets() -> dict[str, tuple[str, ...]]:
    """Editor -> its presets."""
    return {name: tuple(make_editor(name).presets) for name in editor_names()}


def _all(presets: Mapping[str, Sequence[str]]) -> list[str]:
    known = sorted(presets, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
    made = {name: make_editor(name) for name in known}
    known.sort(key=lambda name: made[name].control)
    return [
        text
        for name in known
        for text in (name, *(f"{name}:{preset}" for preset in (presets[name] if made[name].trained else ())))
    ]


def _layers(name: str, text: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The option that says which layers an editor changes."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise InputError(f"Layers are whole numbers counted from 0, with commas between them; got {text!r}.")
    known = tuple(make_editor(name).options.model_dump())
    key = next((key for key in ("layer", "layers") if key in known), None)
    if key is None or (key == "layer" and len(parts) > 1):
        raise InputError(
            f"The editor {name!r} takes {'one layer' if key else 'no layer'}; its options: {', '.join(known)}."
        )
    if key in options:
        raise InputError(f"The layer is given twice, by --layer and as the setting {key!r}.")
    return {key: int(parts[0]) if key == "layer" else [int(part) for part in parts]}


def _by_label(sets: Sequence[str], labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    texts: dict[str, list[str]] = {label: [] for label in labels}
    faults: list[str] = []
    for text in sets:
        before, sign, _ = text.partition("=")
        label, dot, key = before.rpartition(".")
        if not sign or not dot or not key:
            faults.append(f"A setting is written editor.key=value, for example rome.steps=30; got {text!r}.")
        elif label not in texts:
            faults.append(f"The setting {text!r} is for {label!r}, which takes no part{nearest(label, tuple(texts))}")
        else:
            texts[label].append(text[len(label) + 1 :])
    if faults:
        raise InputError(faults)
    return {label: settings_of(given) for label, given in texts.items()}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text

"""The editors by name; nothing is imported until one is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from engramscope.errors import UnknownNameError
from engramscope.options import parse_options
from engramscope.registry import Registry, nearest

if TYPE_CHECKING:
    from engramscope.edit._base import Editor

_PACKAGE = "engramscope.edit.editors"


def editor_names() -> tuple[str, ...]:
    """Names of all editors, sorted; imports neither torch nor any editor."""
    return Registry(_PACKAGE, object, "editor").names()


def describe_editor(name: str) -> str:
    """The first docstring line of an editor, read without importing it (empty for third-party ones)."""
    return Registry(_PACKAGE, object, "editor").describe(name)


def make_editor(name: str, options: Mapping[str, Any] | None = None, *, preset: str | None = None) -> Editor:
    """The editor called `name`, with its options validated.

    Args:
        name: a name of `editor_names()`.
        options: its options; those that are given win over those of the preset.
        preset: a named set of options of this editor ("rome-2022").

    Raises:
        UnknownNameError: no such editor, or no such preset of it; names the nearest one.
        StudyError: unknown options or values out of range, one sentence for every fault.
    """
    from engramscope.edit._base import Editor  # here, because it imports torch

    component = Registry(_PACKAGE, Editor, "editor").get(name)
    known = component.presets
    if preset is not None and preset not in known:
        raise UnknownNameError(f"unknown preset {preset!r} of the editor {name!r}{nearest(preset, tuple(known))}")
    given = {**(known[preset] if preset is not None else {}), **(options or {})}
    return component(name, parse_options("editor", name, component.Options, given), preset)

"""The corruptions by name, and their options; nothing is imported until one is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from engramscope.options import parse_options
from engramscope.registry import Registry

if TYPE_CHECKING:
    from engramscope.corruptions._base import Corruption

_PACKAGE = "engramscope.corruptions"


def corruption_names() -> tuple[str, ...]:
    """Names of all corruptions, sorted; imports neither torch nor any corruption."""
    return Registry(_PACKAGE, object, "corruption").names()


def describe_corruption(name: str) -> str:
    """The first docstring line of a corruption's file, read without importing it (empty for third-party ones)."""
    return Registry(_PACKAGE, object, "corruption").describe(name)


def make_corruption(name: str, options: Mapping[str, Any]) -> Corruption:
    """The corruption called `name`, with its options validated.

    Args:
        name: a name of `corruption_names()`.
        options: what stands beside `method` in the study file.

    Raises:
        UnknownNameError: no such corruption; names the nearest one.
        StudyError: unknown options (with the nearest known one) or values out of range, one sentence for every fault.
        TypeError: the corruption's file exposes no `COMPONENT`, a subclass of `Corruption`.
    """
    from engramscope.corruptions._base import Corruption  # here, because it imports torch

    component = Registry(_PACKAGE, Corruption, "corruption").get(name)
    return component(parse_options("corruption", name, component.Options, options))

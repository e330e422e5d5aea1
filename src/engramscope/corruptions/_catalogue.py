"""The corruptions by name, and their options; nothing is imported until one is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from engramscope.errors import StudyError
from engramscope.registry import Registry, nearest

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
    try:
        parsed = component.Options.model_validate(dict(options))
    except ValidationError as error:
        known = tuple(component.Options.model_fields)
        faults = [_sentence(item, name, known) for item in error.errors(include_url=False)]
        raise StudyError(list(dict.fromkeys(faults))) from None
    return component(parsed)


def _sentence(item: Any, name: str, known: tuple[str, ...]) -> str:
    place = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        help_ = nearest(place, known) if known else "; it has none."
        return f"corruption {name!r}: unknown option {place!r}{help_}"
    if item["type"] == "missing":
        return f"corruption {name!r}: the option {place!r} is missing."
    message = item["msg"].removeprefix("Value error, ")
    return f"corruption {name!r}: option {place!r}: {message} (got {item['input']!r})."

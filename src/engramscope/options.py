"""Options that stand beside a component's name in a study file: checked, and named when they are at fault."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from engramscope.errors import StudyError
from engramscope.registry import nearest

Options = TypeVar("Options", bound=BaseModel)


def parse_options(kind: str, name: str, model: type[Options], given: Mapping[str, Any]) -> Options:
    """The options of a component, validated.

    Args:
        kind: what the component is called in messages ("corruption").
        name: its name.
        model: the pydantic class of its options.
        given: what stands beside its name.

    Raises:
        StudyError: unknown options (with the nearest known one) or values out of range, one sentence for every fault.
    """
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        known = tuple(model.model_fields)
        faults: dict[str, str] = {}
        for item in error.errors(include_url=False):
            # of the branches of a union, and of the items of a list, the first says enough
            faults.setdefault(_place(item), _sentence(item, f"{kind} {name!r}", known))
        raise StudyError(list(faults.values())) from None


def _place(item: Any) -> str:
    """The option that is at fault; empty where it is several of them together."""
    return str(item["loc"][0]) if item["loc"] else ""


def _sentence(item: Any, where: str, known: tuple[str, ...]) -> str:
    place = _place(item)
    if not place:  # several options do not go together
        return f"{where}: {item['msg'].removeprefix('Value error, ')}."
    if item["type"] == "extra_forbidden":
        return f"{where}: unknown option {place!r}{nearest(place, known) if known else '; it has none.'}"
    if item["type"] == "missing":
        return f"{where}: the option {place!r} is missing."
    return f"{where}: option {place!r}: {item['msg'].removeprefix('Value error, ')} (got {item['input']!r})."

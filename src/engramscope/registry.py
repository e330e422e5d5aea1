"""Components found by file name: adding a file adds a component, and nothing else has to be edited."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import pkgutil
from difflib import get_close_matches
from pathlib import Path
from typing import Generic, TypeVar

from engramscope.errors import UnknownNameError

T = TypeVar("T")

#: as many names are listed in full; of more than that so many, the nearest
_ALL, _FEW = 20, 8


def nearest(name: str, known: tuple[str, ...]) -> str:
    """A sentence end that helps after a typo: the nearest known name, and all of them or, of many, the nearest."""
    hint = get_close_matches(name, known, n=1)
    shown = ", ".join(known)
    if len(known) > _ALL:
        few = get_close_matches(name, known, n=_FEW, cutoff=0.0)
        shown = f"{', '.join(few)} and {len(known) - len(few)} more"
    return (f"; did you mean {hint[0]!r}?" if hint else ".") + f" Known: {shown}."


class Registry(Generic[T]):
    """The components of one package: `names()` imports nothing, `get(name)` imports only the one asked for.

    A component is a module `<package>/<name>.py`, or a folder `<package>/<name>/`, whose name does not begin with an
    underscore and which exposes `COMPONENT`, a subclass of `base`. Other distributions add theirs through the entry
    point group `engramscope.<kind>`.

    Args:
        package: the dotted name of the package that holds the components.
        base: the class that every component extends.
        kind: what a component is called in messages, for example "metric".
    """

    def __init__(self, package: str, base: type[T], kind: str) -> None:
        self._package, self._base, self._kind = package, base, kind
        self._group = f"engramscope.{package.rsplit('.', 1)[-1]}"

    def names(self) -> tuple[str, ...]:
        """All names, sorted, without importing any component."""
        third_party = (entry.name for entry in importlib.metadata.entry_points(group=self._group))
        return tuple(sorted({*self._files(), *third_party}))

    def get(self, name: str) -> type[T]:
        """Import and return the component called `name`.

        Raises:
            UnknownNameError: no such component; names the nearest one.
            TypeError: the module exposes no `COMPONENT` of the right class.
        """
        if name not in self.names():
            raise UnknownNameError(f"unknown {self._kind} {name!r}{nearest(name, self.names())}")
        for entry in importlib.metadata.entry_points(group=self._group, name=name):
            return self._checked(name, entry.load())
        module = importlib.import_module(f"{self._package}.{name}")
        return self._checked(name, getattr(module, "COMPONENT", None))

    def describe(self, name: str) -> str:
        """The first docstring line of a component's file, read without importing it."""
        return describe_file(self._package, name)

    def _files(self) -> dict[str, Path]:
        return _component_files(self._package)

    def _checked(self, name: str, component: object) -> type[T]:
        if not (isinstance(component, type) and issubclass(component, self._base)):
            raise TypeError(f"{self._package}.{name} must expose COMPONENT, a subclass of {self._base.__name__}.")
        return component


def describe_file(package: str, name: str) -> str:
    """The first docstring line of a package's component, read without importing it; "" if it has no file."""
    path = _component_files(package).get(name)
    if path is None:
        return ""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n", 1)[0]


def _component_files(package: str) -> dict[str, Path]:
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return {
        module.name: Path(folder) / (f"{module.name}/__init__.py" if module.ispkg else f"{module.name}.py")
        for folder in folders
        for module in pkgutil.iter_modules([folder])
        if not module.name.startswith("_")
    }

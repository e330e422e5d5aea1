"""Second moments on disk: one file for each, under a name that holds everything it depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from engramscope.errors import InputError, ResultsError
from engramscope.records.cache import cache_folder
from engramscope.results.atomic import disk_sentence, write_bytes

_KEY = "engramscope_second_moment"
_UNFINISHED = "{path} holds no second moment, but one that is still being measured."


@dataclass(frozen=True, slots=True, eq=False)
class SecondMoment:
    """The uncentred second moment of a layer's keys.

    Attributes:
        matrix: (1/N) Σ k kᵀ [n_in, n_in]; float64, or float32 for very wide layers.
        tokens: N.
        said: everything that it depends on.
    """

    matrix: Float[Tensor, "n_in n_in"]
    tokens: int
    said: Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Partial:
    """A measurement that is under way.

    Attributes:
        sums: Σ k kᵀ for each layer.
        tokens: how many were seen.
        documents: how many were seen.
    """

    sums: Sequence[Tensor]
    tokens: int
    documents: int


@dataclass(frozen=True, slots=True)
class MomentStore:
    """A folder of second moments.

    Attributes:
        folder: it is made when something is written.
    """

    folder: Path

    @classmethod
    def at(cls, cache: str | Path | None) -> MomentStore:
        """The store in a cache folder; None for the user's own."""
        return cls((Path(cache) if cache else cache_folder()) / "second_moments")

    def file(self, said: Mapping[str, Any]) -> Path | None:
        """Where a moment is kept under this description; None where nothing sound is."""
        path = self._path(said)
        try:
            known = _read(path, tensors=False)[1]
        except InputError:
            return None
        return path if known.get("said") == dict(said) else None

    def write(self, moment: SecondMoment) -> Path:
        """Keep a moment; the file.

        Raises:
            ResultsError: the disk refuses.
        """
        path = self._path(moment.said)
        self._write(path, {"matrix": moment.matrix}, {"said": moment.said, "tokens": moment.tokens})
        return path

    def read_partial(self, saids: Sequence[Mapping[str, Any]]) -> Partial | None:
        """A measurement of these that was stopped; None where there is none."""
        try:
            tensors, said = _read(self._path(*saids, partial=True))
        except InputError:
            return None
        if said.get("saids") != list(saids):
            return None
        return Partial([tensors[f"sum{index}"] for index in range(len(saids))], said["tokens"], said["documents"])

    def write_partial(self, saids: Sequence[Mapping[str, Any]], partial: Partial) -> None:
        """Keep a measurement that is under way.

        Raises:
            ResultsError: the disk refuses.
        """
        tensors = {f"sum{index}": total.cpu() for index, total in enumerate(partial.sums)}
        said = {"saids": list(saids), "tokens": partial.tokens, "documents": partial.documents}
        self._write(self._path(*saids, partial=True), tensors, said)

    def remove_partial(self, saids: Sequence[Mapping[str, Any]]) -> None:
        """Forget a measurement that has ended."""
        with suppress(OSError):
            self._path(*saids, partial=True).unlink(missing_ok=True)

    def _path(self, *saids: Mapping[str, Any], partial: bool = False) -> Path:
        key = hashlib.sha256(json.dumps(saids, sort_keys=True).encode()).hexdigest()[:32]
        layers = "-".join(str(said["layer"]) for said in saids)
        return self.folder / f"layer{layers}-{key}{'.partial' if partial else ''}.safetensors"

    def _write(self, path: Path, tensors: dict[str, Tensor], said: Mapping[str, Any]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResultsError(disk_sentence(self.folder, error)) from None
        write_bytes(path, save(tensors, metadata={_KEY: json.dumps(said)}))


def read_moment(path: str | Path) -> SecondMoment:
    """A second moment from its file.

    Raises:
        InputError: there is no such file, it is damaged, or it holds no second moment.
    """
    tensors, said = _read(Path(path))
    if "matrix" not in tensors:
        raise InputError(_UNFINISHED.format(path=path))
    # what safetensors gives is the file itself, and would change with it
    return SecondMoment(tensors["matrix"].clone(), said["tokens"], said["said"])


def given_file(path: str | Path, wanted: Mapping[str, Any]) -> Path:
    """The file of a second moment, itself or in a folder, held to the model and the layer that it is needed for.

    Of several that fit, the one of the most tokens is taken.

    Args:
        path: the file, or a folder of files that `MomentStore` wrote.
        wanted: the description of what is needed; the texts and the number of tokens are free.

    Raises:
        InputError: it is of another model or layer, or there is none.
    """
    path = Path(path)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    faults: list[str] = []
    found: list[tuple[int, Path]] = []
    for file in files:
        if path.is_dir() and file.name.endswith(".partial.safetensors"):
            continue
        known = _read(file, tensors=False)[1]
        if "said" not in known:
            raise InputError(_UNFINISHED.format(path=file))
        if (fault := _misfit(file, known["said"], wanted)) is not None:
            faults.append(fault)
        else:
            found.append((known["tokens"], file))
    if found:
        return max(found, key=lambda one: one[0])[1]
    if path.is_dir() and len(faults) != 1:
        raise InputError(
            f"{path} holds {len(faults)} second moments, and none of them is of layer {wanted['layer']} of this model "
            "as it is now; leave the option out to have it measured."
        )
    raise InputError(faults)


def _misfit(file: Path, said: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """Why a moment cannot be used; None where it can."""
    if said["layer"] != wanted["layer"]:
        return f"{file} is the second moment of layer {said['layer']}, and layer {wanted['layer']} is to be edited."
    free = {"texts", "tokens", "context", "layer"}
    differing = [key for key in wanted if key not in free and said.get(key) != wanted[key]]
    if not differing:
        return None
    if differing == ["edits"]:
        return f"{file} was measured on the model with other edits in the layers below; measure it again."
    return (
        f"{file} is the second moment of another model, or of another state of it ({', '.join(differing)} differ); "
        "leave the option out to have it measured on this one."
    )


def _read(path: Path, *, tensors: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description; a file that was cut off is noticed without reading the tensors, too."""
    found: dict[str, Tensor] = {}
    try:
        with safe_open(str(path), framework="pt") as file:
            said = json.loads((file.metadata() or {}).get(_KEY, "null"))
            if tensors and isinstance(said, dict):
                found = {name: file.get_tensor(name) for name in list(file.keys())}
    except FileNotFoundError:
        raise InputError(f"There is no second moment {str(path)!r}.") from None
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is no second moment, or it is damaged ({error}).") from None
    if not isinstance(said, dict):
        raise InputError(f"{path} holds tensors, but no second moment that Engramscope wrote.")
    return found, said

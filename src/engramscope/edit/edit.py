"""An edit: what is added to which parameters, and everything that was needed to find it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from engramscope.edit.applied import applied_to, apply_deltas, revert_deltas
from engramscope.edit.delta import Delta, total
from engramscope.errors import InputError
from engramscope.models.model import Model, hash_of
from engramscope.records.fact import Fact

#: hash of a model's weights as they were before the first of the edits that are in it
_UNEDITED: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Edit:
    """The outcome of an editor; a model is changed only by `applied`, `apply` and `revert`.

    Attributes:
        method: name of the editor.
        deltas: name of a parameter -> what is added to it.
        facts: what was asked for.
        settings: the editor's options, resolved.
        seed: of everything that was drawn.
        model: name, revision, type, dtype and weight hash of the model that it was computed on.
        before: name of an edited parameter -> SHA-256 of its value before the edit.
        prefixes: texts that were put before the prompts.
        diagnostics: what the editor measured on its way, plain numbers, texts and lists; for each fact in "facts".
        notes: sentences about what a user should know.
    """

    method: str
    deltas: Mapping[str, Delta]
    facts: tuple[Fact, ...]
    settings: Mapping[str, Any]
    seed: int
    model: Mapping[str, Any]
    before: Mapping[str, str]
    prefixes: tuple[str, ...] = ()
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @contextmanager
    def applied(self, model: Model, *, anyway: bool = False) -> Iterator[Model]:
        """The edited model for the time of a context; afterwards every bit is as it was.

        Raises:
            InputError: as `apply`.
        """
        self.apply(model, anyway=anyway)
        try:
            yield model
        finally:
            self.revert(model)

    def apply(self, model: Model, *, anyway: bool = False) -> None:
        """Put the edit into the model.

        In float32 and wider the deltas are added to the parameters. In half precision most of a small change would be
        rounded away, so there the parameters stay as they are and what the delta adds to the module's output is
        computed beside them in float32.

        Args:
            model: the model that it was computed on, in the state it had then.
            anyway: do not look whether it is that model in that state: edits that were computed side by side are put
                one on top of the other.

        Raises:
            InputError: another model, another state of it, or parameters that it does not have.
        """
        known = identity(model)["hash"]
        if not anyway:
            self._ensure_fits(model, known)
        if not applied_to(model.hf):
            _UNEDITED[model.hf] = known
        apply_deltas(model.hf, self, self.deltas)
        model.weights_changed()

    def revert(self, model: Model) -> None:
        """Take the edit out again. Whatever was applied after it stays; without it, every bit is as it was.

        Raises:
            InputError: the edit is not in the model.
        """
        revert_deltas(model.hf, self)
        model.weights_changed(None if applied_to(model.hf) else _UNEDITED.pop(model.hf, None))

    def save(self, path: str | Path) -> None:
        """Write the edit as one safetensors file, in full or not at all; `load_edit` reads it.

        Raises:
            ResultsError: the disk refuses.
        """
        from engramscope.edit.storage import save_edit  # here, because it makes edits when it reads them

        save_edit(self, Path(path))

    def export(self, model: Model, folder: str | Path) -> float:
        """Write the edited model as a plain Hugging Face checkpoint; see `storage.export`."""
        from engramscope.edit.storage import export

        return export(self, model, Path(folder))

    def norms(self, model: Model) -> dict[str, float]:
        """|ΔW| / |W| of every edited parameter, Frobenius, W as it is in the model now."""
        parameters = dict(model.hf.named_parameters())
        return {
            name: delta.norm() / float(parameters[name].detach().double().norm())
            for name, delta in self.deltas.items()
        }  # fmt: skip

    def ensure_fits(self, model: Model) -> None:
        """Check that this is the model that the edit was computed on, in the state it had then.

        Raises:
            InputError: another model, another state of it, or parameters that it does not have.
        """
        self._ensure_fits(model, identity(model)["hash"])

    def _ensure_fits(self, model: Model, unedited: str) -> None:
        """`ensure_fits`, where the hash of the model without edits is known: one in memory is hashed anew each time."""
        parameters = dict(model.hf.named_parameters())
        whose = f"The edit was computed on {self.model.get('name')}"
        if missing := [name for name in self.deltas if name not in parameters]:
            raise InputError(f"{whose}, and {model.name} has no parameter {missing[0]}; apply it to the model of then.")
        for name, delta in self.deltas.items():
            value = parameters[name]
            if tuple(value.shape) != delta.shape:
                raise InputError(
                    f"{whose}: {name} has shape {tuple(delta.shape)} there and {tuple(value.shape)} in {model.name}; "
                    "an edit fits only the model that it was computed on."
                )
            if (known := self.before.get(name)) is not None and fingerprint(value) != known:
                raise InputError(
                    f"{whose}, and {name} has another value in {model.name} now: it is another model, or it was edited "
                    "or trained since. Compute the edit again, or say that it is to be put on top (anyway)."
                )
        if self.model.get("hash", unedited) != unedited:
            raise InputError(
                f"{whose}, and in {model.name} weights that it does not change have other values: it is another model, "
                "or it was trained since. Compute the edit again, or say that it is to be put on top (anyway)."
            )
        if self.model.get("edited") and not applied_to(model.hf):
            raise InputError(
                f"{whose} with other edits in it, and there are none in {model.name} now. Put these in first, compute "
                "the edit again, or say that it is to go in without them (anyway)."
            )


def combined(edits: list[Edit]) -> Edit:
    """Edits that were computed one on top of the other, as one: their deltas are added.

    Of the diagnostics it has those of each fact, and those that are the same in all edits.

    Args:
        edits: at least one, by one editor, each computed with those before it in place.
    """
    first = edits[0]
    if len(edits) == 1:
        return first
    names = list(dict.fromkeys(name for edit in edits for name in edit.deltas))
    before: dict[str, str] = {}
    for edit in edits:
        for name, known in edit.before.items():
            before.setdefault(name, known)
    facts = [dict(entry) for edit in edits for entry in edit.diagnostics.get("facts", ())]
    # what was measured for one of them does not hold for all
    alike = {
        key: value for key, value in first.diagnostics.items()
        if all(edit.diagnostics.get(key) == value for edit in edits)
    }  # fmt: skip
    return Edit(
        first.method, {name: total([edit.deltas[name] for edit in edits if name in edit.deltas]) for name in names},
        tuple(fact for edit in edits for fact in edit.facts), first.settings, first.seed, first.model, before,
        tuple(dict.fromkeys(prefix for edit in edits for prefix in edit.prefixes)),
        {**alike, "facts": facts}, tuple(dict.fromkeys(note for edit in edits for note in edit.notes)),
    )  # fmt: skip


def fingerprint(value: Tensor) -> str:
    """SHA-256 of one tensor: type, shape and bytes."""
    return hash_of({"": value})


def identity(model: Model) -> dict[str, Any]:
    """What an edit remembers of the model that it was computed on; the hash is that of the model without its edits."""
    edited = bool(applied_to(model.hf))
    known = _UNEDITED[model.hf] if edited and model.hf in _UNEDITED else model.weight_hash()
    return {
        "name": model.name, "source": model.source, "revision": model.revision, "type": model.anatomy.model_type,
        "dtype": str(model.dtype).removeprefix("torch."), "hash": known, "edited": edited,
    }  # fmt: skip

"""What training changed, as the graph of layers and positions needs it: at which sites a value may differ of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import nn

from engramscope.errors import ModelError, SiteError
from engramscope.locate.cells import Cell
from engramscope.locate.runs import places_of
from engramscope.models.model import Model
from engramscope.models.weights import Part, differing, ensure_same_shape, placed_tensors, tensor_names
from engramscope.pairs.pair import PairSet

#: sites whose value the weights of these parts of their own layer have a say in
_PARTS_BEHIND: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("q", "k", "v", "pattern", "z", "attn_out"), ("attn", "norms")),
    **dict.fromkeys(("mlp_act", "mlp_out"), ("mlp", "norms")),
    # norms that come after an addition
    **dict.fromkeys(("resid_mid", "resid_post"), ("norms",)),
}


@dataclass(frozen=True)
class Changed:
    """Where two models of one shape differ.

    Attributes:
        model: either of them, for its parts.
        tensors: names of the tensors that differ.
    """

    model: Model
    tensors: frozenset[str]
    _lent: dict[object, frozenset[str]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def at(self, site: str, layer: int | None) -> bool:
        """Whether the value at a site may differ for equal inputs; True where that is not known."""
        moved = self._moved
        if ("other", None) in moved:
            return True
        if site == "embed":
            return ("token embedding", None) in moved
        if site == "resid_pre" and layer == 0:
            return ("embed", None) in moved
        if site in ("final_norm", "logits"):
            return ("final_norm" if site == "final_norm" else "head", None) in moved
        return any((part, layer) in moved for part in _PARTS_BEHIND.get(site, ()))

    @cached_property
    def _moved(self) -> frozenset[Part]:
        """The parts in which a tensor differs, under any of its names; `other` where its place is not known."""
        names, found = tensor_names(self.model.hf), set[Part]()
        for name, place in placed_tensors(self.model).items():
            if names[name] in self.tensors:
                found |= self._reached(name, place)
        return frozenset(found)

    def _reached(self, name: str, place: Part) -> set[Part]:
        anatomy, module = self.model.anatomy, name.rpartition(".")[0]
        if place == ("embed", None):
            if name.startswith(f"{anatomy.embed}."):
                return {place, ("token embedding", None)}
            # what is added to the residual stream has its width; anything else may reach every block
            return {place} if self._width(module) == anatomy.d_model else {("other", None)}
        if place == ("final_norm", None) and not name.startswith(f"{anatomy.final_norm}."):
            return {place, ("head", None)}  # it may come after the head
        return {place}

    def _width(self, path: str) -> object:
        module = self.model.hf.get_submodule(path)
        if isinstance(module, nn.Embedding):
            return module.embedding_dim
        try:
            return self.model.shape(path)[-1]
        except SiteError:
            return None

    def lent(self, cell: Cell) -> frozenset[str]:
        """The tensors that a transplant replaces by others than are there."""
        key = (cell.site, cell.layers)
        if key not in self._lent:
            names = {name for site, layer in places_of(cell) for name in self.model.tensors(site, layer)}
            self._lent[key] = self.tensors.intersection(names)
        return self._lent[key]


def changed_between(model: Model, base: Model) -> Changed:
    """Where a model and its base differ.

    Raises:
        ModelError: they are not two states of one model.
    """
    ensure_same_shape(model.hf, base.hf, (model.name, base.name))
    tensors = differing(model.hf, base.hf)
    if not tensors:
        raise ModelError(
            f"{model.name} and {base.name} differ in not a single weight, so training changed nothing that could be "
            "found. Is the right folder named?"
        )
    return Changed(model, tensors)


def ensure_one_tokenizer(model: Model, base: Model, pairs: PairSet) -> None:
    """Refuse a base model that reads the prompts or answers of these pairs as other tokens.

    Raises:
        ModelError: names the first text.
    """
    if base.tokenizer is None:
        return  # it is given the tokens of the other
    for text in (text for pair in pairs for text in (pair.clean, *pair.correct, *pair.incorrect)):
        mine, theirs = model.tokenizer(text)["input_ids"], base.tokenizer(text)["input_ids"]
        if list(mine) != list(theirs):
            raise ModelError(
                f"{model.name} and {base.name} do not read {text!r} as the same tokens, so they cannot be compared on "
                "it. Give both the same tokenizer."
            )

"""What training changed, as the graph of layers and positions needs it: at which sites a value may differ of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from engramscope.errors import ModelError
from engramscope.locate.cells import Cell
from engramscope.locate.runs import places_of
from engramscope.models.model import Model
from engramscope.models.weights import differing, ensure_same_shape, weight_parts
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
        anatomy, parts = self.model.anatomy, self.model.remember("weight_parts", self._parts)
        wanted: list[tuple[str, int | None]] = [(part, layer) for part in _PARTS_BEHIND.get(site, ())]
        if site == "embed":
            return any(name.startswith(f"{anatomy.embed}.") for name in self.tensors)
        if site == "resid_pre" and layer == 0:
            wanted = [("embed", None)]
        if site == "final_norm":
            wanted = [("final_norm", None)]
        if site == "logits":
            if ("head", None) not in parts:
                return self.at("embed", None)  # one tensor for both
            wanted = [("head", None)]
        return any(self.tensors.intersection(parts.get(part, ())) for part in wanted)

    def lent(self, cell: Cell) -> frozenset[str]:
        """The tensors that a transplant replaces by others than are there."""
        key = (cell.site, cell.layers)
        if key not in self._lent:
            names = {name for site, layer in places_of(cell) for name in self.model.tensors(site, layer)}
            self._lent[key] = self.tensors.intersection(names)
        return self._lent[key]

    def _parts(self) -> dict[tuple[str, int | None], tuple[str, ...]]:
        return weight_parts(self.model.hf, self.model.anatomy)


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

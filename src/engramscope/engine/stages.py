"""When in a forward a site has its value: before the blocks, at some point of a block, or after them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engramscope.models.model import Model
from engramscope.models.site import is_module_path

Place = tuple[str, int | None]  # (site, layer)
#: in the order of a forward; "local" and "mixed" are both inside the block
Moment = Literal["stem", "pre", "mixed", "local", "post", "tail"]

#: a changed value here changes nothing else in this block but what is computed of the same token
_LOCAL = frozenset({"q", "z", "pattern", "attn_out", "resid_mid", "mlp_act", "mlp_out"})
_ORDER: dict[Moment, int] = {"stem": 0, "pre": 1, "mixed": 2, "local": 3, "post": 4, "tail": 5}


class UnsupportedPlanError(Exception):
    """A plan that one traversal cannot follow; the message says why."""


@dataclass(frozen=True, slots=True, order=True)
class Stage:
    """A point of the forward.

    Attributes:
        number: ascending in the order of the forward.
        layer: the block; -1 before the blocks, the number of blocks after them.
        moment: where in the block.
    """

    number: int
    layer: int
    moment: Moment

    @property
    def inside(self) -> bool:
        """Whether it lies inside a block, where a hook is needed."""
        return self.moment in ("mixed", "local")


def stage(moment: Moment, layer: int, n_layers: int) -> Stage:
    """The stage of a moment: `layer` says nothing for "stem" and "tail"."""
    at = {"stem": -1, "tail": n_layers}.get(moment, layer)
    return Stage(4 * max(at, 0) + _ORDER[moment], at, moment)


def stage_of(model: Model, place: Place) -> Stage:
    """The stage at which a place has its value.

    Raises:
        UnsupportedPlanError: a module whose output lies neither in a block, nor before or after all of them.
    """
    site, layer = place
    n_layers = model.anatomy.n_layers
    if not is_module_path(site):
        at = -1 if layer is None else layer
        if site == "embed":
            return stage("stem", at, n_layers)
        if site in ("final_norm", "logits"):
            return stage("tail", at, n_layers)
        if site in ("resid_pre", "resid_post"):
            return stage("pre" if site == "resid_pre" else "post", at, n_layers)
        return stage("local" if site in _LOCAL else "mixed", at, n_layers)
    phase = model.phase(site)
    if isinstance(phase, int):
        return stage("post" if site == model.anatomy.blocks[phase] else "mixed", phase, n_layers)
    if phase == "between":
        raise UnsupportedPlanError(f"the module {site} is neither in a block nor before or after all blocks")
    return stage(phase, -1, n_layers)

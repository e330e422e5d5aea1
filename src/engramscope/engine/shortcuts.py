"""What need not be computed of runs that begin to differ in the middle of a block.

Before the patched site such a run holds what its base holds. So its queries, keys and values are nobody's business, and
what its attention would give is the base's; and a module whose whole output is replaced need not be called at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from engramscope.engine.layout import Ints
from engramscope.engine.stages import Place
from engramscope.engine.writes import WriteGroup
from engramscope.models.drive import example_outputs, replaced
from engramscope.models.hooks import input_tensor, with_output
from engramscope.models.model import Model
from engramscope.models.site import Port

#: sites behind the attention: a run that is patched and read only there attends as its base does
_BEHIND = frozenset({"z", "attn_out", "resid_mid", "mlp_act", "mlp_out"})
#: sites that are the whole output of a module which reads nothing but its input
_WHOLE = ("attn_out", "mlp_out")
#: sites inside these modules
_INSIDE = {"attn_out": {"z"}, "mlp_out": {"mlp_act"}}


class Shortcuts:
    """Replaces modules whose work would be thrown away, for the time of one call of a block.

    Args:
        model: the model.
        tokens: a few token ids [1, seq], to see in which form modules return their output.
    """

    def __init__(self, model: Model, tokens: Tensor) -> None:
        self._model = model
        self._projections: dict[int, list[tuple[nn.Module, int]]] = {}
        self._whole: dict[Place, tuple[nn.Module, Any]] = {}
        ports: dict[tuple[str, int], Port] = {}
        for layer in range(model.anatomy.n_layers):
            for site in ("q", "k", "v", *_WHOLE):
                access = model.site(site, layer) if site in model.sites else None
                if isinstance(access, Port) and access.side == "output":
                    ports[site, layer] = access
        modules = [port.module for port in ports.values()]
        forms = dict(zip(ports, example_outputs(model.hf, modules, tokens), strict=True))
        for (site, layer), port in ports.items():
            if site in _WHOLE:
                self._whole[site, layer] = (port.module, forms[site, layer])
            else:
                self._projections.setdefault(layer, []).append((port.module, forms[site, layer].shape[-1]))

    @contextmanager
    def taken(
        self, layer: int, groups: Mapping[Place, Sequence[WriteGroup]], places: Sequence[Place], tokens: Ints
    ) -> Iterator[None]:
        """Leave out the projections of a layer, and modules whose output is written at every one of the tokens.

        Args:
            layer: the block.
            groups: what is written.
            places: everything that is written or read in the layer.
            tokens: who passes.
        """
        with ExitStack() as stack:
            for module, width in self._projections.get(layer, ()):
                stack.enter_context(replaced(module, "forward", _blank(width, None)))
            for place, members in groups.items():
                whole = self._whole.get(place)
                # what is read inside a module is there only if it is called
                if (
                    whole is not None
                    and not _INSIDE[place[0]] & {site for site, _ in places}
                    and any(group.heads is None and _covers(group, tokens) for group in members)
                ):
                    module, form = whole
                    stack.enter_context(replaced(module, "forward", _blank(self._model.anatomy.d_model, form)))
            yield


def attends_as_base(places: Sequence[Place]) -> bool:
    """Whether runs that are patched and read at these places only attend as their bases do."""
    return all(site in _BEHIND for site, _ in places)


def _covers(group: WriteGroup, tokens: Ints) -> bool:
    return len(set(group.within(tokens)[0].tolist())) == len(tokens)


def _blank(width: int, form: Any) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        given = input_tensor(args, kwargs)
        assert given is not None, "a module of a block is given the residual stream"
        blank = given.new_zeros((*given.shape[:-1], width))
        return blank if form is None else with_output(form, blank)

    return forward

"""Ways to take the attention of an architecture into one's own hands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

from torch import Tensor, nn

from engramscope.models.anatomy import Anatomy
from engramscope.models.families._base import AttentionRoute, Router
from engramscope.models.interface import eager_attention_of, rerouted_interface
from engramscope.registry import Registry


@final
class InterfaceRoute(AttentionRoute):
    """Architectures on the attention interface of transformers: nothing about them needs to be known."""

    @contextmanager
    def rerouted(self, hf: nn.Module, modules: Sequence[nn.Module], router: Router) -> Iterator[None]:
        """As in `AttentionRoute`."""
        with rerouted_interface(hf, modules, router):
            yield

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, args: Any, kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The eager attention function of the module's own architecture."""
        eager = eager_attention_of(module)
        assert eager is not None, "found at load"
        return eager(module, query, key, value, mask, *args, **kwargs)


def route_of(anatomy: Anatomy) -> AttentionRoute | None:
    """The route of an architecture; None where its attention cannot be taken over."""
    if anatomy.attention_interface:
        return InterfaceRoute()
    families = Registry("engramscope.models.families", AttentionRoute, "architecture")  # pyright: ignore[reportAbstractUsage]
    return families.get(anatomy.model_type)() if anatomy.model_type in families.names() else None

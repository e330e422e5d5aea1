"""GPT-J: the attention is a method of its module, written out before the attention interface was there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, final

from torch import Tensor, nn

from engramscope.models.drive import replaced
from engramscope.models.families._base import AttentionRoute, Router
from engramscope.models.interface import without_masks


@final
class GPTJRoute(AttentionRoute):
    """`GPTJAttention._attn(query, key, value, attention_mask)` is replaced on each module."""

    @contextmanager
    def rerouted(self, hf: nn.Module, modules: Sequence[nn.Module], router: Router) -> Iterator[None]:
        """As in `AttentionRoute`."""

        def method(module: nn.Module) -> Any:
            def attend(query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None) -> Any:
                del attention_mask  # the router knows the mask of its own rows
                output, weights = router(module, query, key, value, (), {})
                return output.transpose(1, 2), weights

            return attend

        with ExitStack() as stack:
            stack.enter_context(without_masks(hf))
            for module in modules:
                stack.enter_context(replaced(module, "_attn", method(module)))
            yield

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, args: Any, kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The module's own method, on padded rows."""
        output, weights = type(module)._attn(module, query, key, value, mask)  # type: ignore[attr-defined]
        return output.transpose(1, 2), weights


COMPONENT = GPTJRoute

"""How an architecture's attention is taken over: the base class of the files in this folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

#: called as (module, query, key, value, positional, keyword arguments) with query [batch, n_heads, seq, d_head] and key
#: and value [batch, n_kv_heads, seq, d_head]; returns (output [batch, seq, n_heads, d_head], weights or None)
Router = Callable[[nn.Module, Tensor, Tensor, Tensor, tuple[Any, ...], dict[str, Any]], tuple[Tensor, Tensor | None]]


class AttentionRoute(ABC):
    """How attention modules hand over queries, keys and values, and how they would have used them."""

    @abstractmethod
    def rerouted(self, hf: nn.Module, modules: Sequence[nn.Module], router: Router) -> AbstractContextManager[None]:
        """A context in which these attention modules call `router` instead of attending, and no mask is made."""

    @abstractmethod
    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, args: Any, kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Attention as the module's architecture computes it.

        Args:
            module: the attention module.
            query: [rows, n_heads, queries, d_head].
            key, value: [rows, n_kv_heads, keys, d_head].
            mask: added to the scores, [rows or 1, 1, queries, keys].
            args, kwargs: what else the module handed over.

        Returns:
            Output [rows, queries, n_heads, d_head] and weights [rows, n_heads, queries, keys].
        """

    def mask(self, module: nn.Module, mask: Tensor) -> Tensor:
        """The mask [longest, longest] of a plain run in this module, from the one that its block was given."""
        del module
        return mask

"""Attention weights through the attention interface of transformers."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

#: the name under which our attention function is registered with transformers
NAME = "engramscope"
#: attribute of an attention module that holds its functions, for the time of `pattern_hooks` only
_SLOT = "_engramscope_pattern"
#: the name under which attention is handed to a router, and its slot in the module for that time
PACKED = "engramscope_packed"
_ROUTER = "_engramscope_router"

PatternTap = Callable[[Tensor], Tensor | None]


@contextmanager
def pattern_hooks(hf: nn.Module, hooks: Sequence[tuple[nn.Module, PatternTap]]) -> Iterator[None]:
    """Call functions on the post-softmax weights [batch, n_heads, query, key] of attention modules.

    All attention of `hf` goes through our function for the time of the context: the model class's own eager attention,
    then the functions; where one of them returns new weights, `weights @ values` is computed again.

    Args:
        hf: the model.
        hooks: an attention module that uses the attention interface, and what to do with its weights.
    """
    _register()
    by_module: dict[nn.Module, list[PatternTap]] = defaultdict(list)
    for module, fn in hooks:
        by_module[module].append(fn)
    outer = {module: module.__dict__.get(_SLOT) for module in by_module}
    with _implementation(hf, NAME):
        try:
            for module, fns in by_module.items():
                module.__dict__[_SLOT] = [*(outer[module] or ()), *fns]
            yield
        finally:
            for module, before in outer.items():
                if before is None:
                    module.__dict__.pop(_SLOT, None)
                else:
                    module.__dict__[_SLOT] = before


@contextmanager
def rerouted_interface(hf: nn.Module, modules: Sequence[nn.Module], router: Callable[..., Any]) -> Iterator[None]:
    """Hand the queries, keys and values of these attention modules to `router`, and make no masks.

    Args:
        hf: the model.
        modules: attention modules that use the attention interface.
        router: called as (module, query, key, value, args, kwargs); returns (output, weights).
    """
    with without_masks(hf):
        try:
            for module in modules:
                module.__dict__[_ROUTER] = router
            yield
        finally:
            for module in modules:
                module.__dict__.pop(_ROUTER, None)


@contextmanager
def without_masks(hf: nn.Module) -> Iterator[None]:
    """No attention mask is made: for tokens in one row that belong to many runs it would be huge, and wrong."""
    _register()
    with _implementation(hf, PACKED):
        yield


@contextmanager
def _implementation(hf: nn.Module, name: str) -> Iterator[None]:
    configs = [(config, config._attn_implementation_internal) for config in attention_configs(hf)]
    try:
        for config, _ in configs:
            # the plain attribute: the property's setter would reach into sub-configurations
            config._attn_implementation_internal = name
        yield
    finally:
        for config, implementation in configs:
            config._attn_implementation_internal = implementation


def attention_configs(hf: nn.Module) -> list[Any]:
    """Every distinct configuration object that a module of `hf` reads its attention implementation from."""
    found: dict[int, Any] = {}
    for module in hf.modules():
        config = module.__dict__.get("config")
        if hasattr(config, "_attn_implementation_internal"):
            found[id(config)] = config
    return list(found.values())


def eager_attention_of(module: nn.Module) -> Callable[..., Any] | None:
    """The eager attention function of the module's own architecture; None where it has none."""
    for cls in type(module).__mro__:
        function = getattr(sys.modules.get(cls.__module__), "eager_attention_forward", None)
        if function is not None:
            return function
    return None


def repeat_heads(values: Tensor, n_heads: int) -> Tensor:
    """Values [batch, n_kv_heads, seq, d_head] for each query head: [batch, n_heads, seq, d_head]."""
    return values.repeat_interleave(n_heads // values.shape[1], dim=1)


def _register() -> None:
    # on first use, not on import; no model is changed by a name that none of them asks for
    if NAME not in AttentionInterface._global_mapping:
        AttentionInterface.register(NAME, _attention)
        AttentionMaskInterface.register(NAME, eager_mask)
        AttentionInterface.register(PACKED, _handed_on)
        AttentionMaskInterface.register(PACKED, _no_mask)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    del args, kwargs


def _handed_on(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    del attention_mask
    return module.__dict__[_ROUTER](module, query, key, value, args, kwargs)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *args: Any,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """`softmax(...) v` of the module's own architecture, with the functions of `pattern_hooks` in between."""
    eager = eager_attention_of(module)
    if eager is None:
        raise RuntimeError(f"{type(module).__name__} has no eager attention function to compute the weights with.")
    output, weights = eager(module, query, key, value, attention_mask, *args, **kwargs)
    replaced = False
    for fn in module.__dict__.get(_SLOT, ()):
        new = fn(weights)
        if new is not None:
            weights, replaced = new, True
    if replaced:
        output = (weights @ repeat_heads(value, weights.shape[1])).transpose(1, 2).contiguous()
    return output, weights

"""Sites: the places in a model whose value can be read and replaced, and the module ports behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

#: every named site of the design, in reading order; anything else is a module path
SITES: tuple[str, ...] = (
    "embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out",
    "q", "k", "v", "z", "pattern", "mlp_act", "final_norm", "logits",
)  # fmt: skip
HEAD_SITES = frozenset({"q", "k", "v", "z", "pattern"})
KV_SITES = frozenset({"k", "v"})
#: sites that exist once, not once per layer
GLOBAL_SITES = frozenset({"embed", "final_norm", "logits"})

#: begins the site of a weight transplant: "weights:mlp", "weights:transformer.h.{layer}.attn.c_attn"
WEIGHTS = "weights:"
#: parts of a model whose weights go by a name; any module goes by its path
LAYER_PARTS: tuple[str, ...] = ("block", "attn", "mlp", "norms")
GLOBAL_PARTS: tuple[str, ...] = ("embed", "final_norm", "head")

#: the shape that each site is declared to have, in the shape words of the design
SITE_SHAPES: dict[str, tuple[str, ...]] = {
    "embed": ("batch", "seq", "d_model"),
    "resid_pre": ("batch", "seq", "d_model"),
    "resid_mid": ("batch", "seq", "d_model"),
    "resid_post": ("batch", "seq", "d_model"),
    "attn_out": ("batch", "seq", "d_model"),
    "mlp_out": ("batch", "seq", "d_model"),
    "q": ("batch", "seq", "n_heads", "d_head"),
    "k": ("batch", "seq", "n_kv_heads", "d_head"),
    "v": ("batch", "seq", "n_kv_heads", "d_head"),
    "z": ("batch", "seq", "n_heads", "d_head"),
    "pattern": ("batch", "n_heads", "seq", "seq"),
    "mlp_act": ("batch", "seq", "d_mlp"),
    "final_norm": ("batch", "seq", "d_model"),
    "logits": ("batch", "seq", "vocab"),
}


def is_module_path(site: str) -> bool:
    """Whether `site` is no named site, and so means a module of the model by its dotted path."""
    return site not in SITES and not is_weights(site)


def is_weights(site: str) -> bool:
    """Whether `site` means the weights of a part of the model, which a transplant replaces, and no value of a run."""
    return site.startswith(WEIGHTS)


def exists_once(site: str) -> bool:
    """Whether a site exists once, not once per layer."""
    if is_weights(site):
        part = site.removeprefix(WEIGHTS)
        return part in GLOBAL_PARTS or (part not in LAYER_PARTS and "{layer}" not in part)
    return site in GLOBAL_SITES or (is_module_path(site) and "{layer}" not in site)


@dataclass(frozen=True, slots=True)
class Port:
    """One tensor at the boundary of a module: what a hook can read and replace.

    Attributes:
        path: dotted path of the module inside the model.
        module: that module.
        side: whether the value is the module's (first) input or its (first) output.
        head_columns: for sites with heads, the feature columns of each head, int64 [n_heads or n_kv_heads, d_head];
            they need not be adjacent (fused projections). None: the whole width is the value.
    """

    path: str
    module: nn.Module
    side: Literal["input", "output"]
    head_columns: Tensor | None = None


@dataclass(frozen=True, slots=True)
class ResidMid:
    """`resid_mid` is no module's input or output: it is `resid_pre + attn_out`, and is written through `attn_out`.

    Replacing it by `v` is replacing `attn_out` by `v - resid_pre` of the same run.

    Attributes:
        resid_pre: where the block's input is read.
        attn_out: where the attention's addition is read and written.
    """

    resid_pre: Port
    attn_out: Port


@dataclass(frozen=True, slots=True)
class AttentionPattern:
    """Post-softmax attention weights [batch, n_heads, query, key], as they multiply the values.

    Attributes:
        layer: the block.
        attention: the attention module of the block.
        dropout: for attention written out in the module (no attention interface): the dropout module through which the
            weights pass; None where the attention interface of transformers is used.
    """

    layer: int
    attention: nn.Module
    dropout: Port | None = None


@dataclass(frozen=True, slots=True)
class ModelLogits:
    """The logits that the model returns, after soft-capping and scaling where the architecture has them."""


SiteAccess = Port | ResidMid | AttentionPattern | ModelLogits

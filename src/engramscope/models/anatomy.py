"""What is known about a model's parts: sizes, where they are, and which sites it cannot offer and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Anatomy:
    """Sizes and paths, found from the module graph and a probe run; plain data.

    Attributes:
        model_type: the architecture's name in transformers ("gpt2").
        n_layers, n_heads, n_kv_heads, d_model, d_head, vocab: sizes. `vocab` is the width of the logits.
        d_mlp: number of neurons of a block's MLP; None where they cannot be told apart (fused experts).
        parallel: attention and MLP of a block read the same input (no `resid_mid`).
        embed, final_norm, head: dotted paths of these modules (`final_norm` may be None).
        blocks: dotted path of each block.
        attention: dotted path of each block's attention module.
        attention_interface: attention goes through the attention interface of transformers.
        refusals: for each site that this model does not offer, a sentence that says why.
    """

    model_type: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int | None
    vocab: int
    parallel: bool
    embed: str
    final_norm: str | None
    head: str
    blocks: tuple[str, ...]
    attention: tuple[str, ...]
    attention_interface: bool
    refusals: Mapping[str, str] = field(default_factory=dict)

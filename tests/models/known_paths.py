"""Where each family keeps its parts, written down by hand: what the library must find out for itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Split = Callable[[dict[str, Tensor], Any], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Known:
    """Module paths inside a block (`attn`, `mlp`: whose output is added), and how q, k, v are cut out.

    `middle` is the module inside the block whose input is the residual after attention, None in parallel blocks.
    """

    blocks: str
    embed: str
    norm: str
    attn: str
    mlp: str
    out: str
    down: str | None
    split: Split
    middle: str | None


def _heads(value: Tensor, count: int) -> Tensor:
    return value.unflatten(-1, (count, -1))


def _separate(prefix: str) -> Split:
    def split(outputs: dict[str, Tensor], a: Any) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (outputs[f"{prefix}.{name}_proj"] for name in "qkv")
        return _heads(q, a.n_heads), _heads(k, a.n_kv_heads), _heads(v, a.n_kv_heads)

    return split


def _gpt2(outputs: dict[str, Tensor], a: Any) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = outputs["attn.c_attn"].split(a.d_model, dim=-1)
    return _heads(q, a.n_heads), _heads(k, a.n_heads), _heads(v, a.n_heads)


def _phi3(outputs: dict[str, Tensor], a: Any) -> tuple[Tensor, Tensor, Tensor]:
    queries, keys = a.n_heads * a.d_head, a.n_kv_heads * a.d_head
    fused = outputs["self_attn.qkv_proj"]
    q, k, v = fused[..., :queries], fused[..., queries : queries + keys], fused[..., queries + keys :]
    return _heads(q, a.n_heads), _heads(k, a.n_kv_heads), _heads(v, a.n_kv_heads)


def _by_head(path: str) -> Split:
    """[head, (q, k, v), d_head], as in GPT-NeoX and BLOOM."""

    def split(outputs: dict[str, Tensor], a: Any) -> tuple[Tensor, Tensor, Tensor]:
        fused = outputs[path].unflatten(-1, (a.n_heads, 3, a.d_head))
        return fused[..., 0, :], fused[..., 1, :], fused[..., 2, :]

    return split


def _multi_query(outputs: dict[str, Tensor], a: Any) -> tuple[Tensor, Tensor, Tensor]:
    fused = outputs["self_attention.query_key_value"].unflatten(-1, (a.n_heads + 2, a.d_head))
    return fused[..., :-2, :], fused[..., -2:-1, :], fused[..., -1:, :]


def _grouped(outputs: dict[str, Tensor], a: Any) -> tuple[Tensor, Tensor, Tensor]:
    """[group, (queries of the group, k, v), d_head], as in Falcon 40B."""
    fused = outputs["self_attention.query_key_value"].unflatten(-1, (a.n_kv_heads, a.n_heads // a.n_kv_heads + 2, -1))
    return fused[..., :-2, :].flatten(-3, -2), fused[..., -2, :], fused[..., -1, :]


def _llama(
    *, attn: str = "self_attn", mlp: str = "mlp", down: str | None = "mlp.down_proj", out: str = "self_attn.o_proj",
    norm: str = "model.norm", middle: str | None = "post_attention_layernorm", split: Split | None = None,
) -> Known:  # fmt: skip
    return Known(
        "model.layers", "model.embed_tokens", norm, attn, mlp, out, down, split or _separate("self_attn"), middle
    )


def _falcon(split: Split, middle: str | None = None) -> Known:
    return Known(
        "transformer.h", "transformer.word_embeddings", "transformer.ln_f", "self_attention", "mlp",
        "self_attention.dense", "mlp.dense_4h_to_h", split, middle,
    )  # fmt: skip


def _neox(middle: str | None) -> Known:
    return Known(
        "gpt_neox.layers", "gpt_neox.embed_in", "gpt_neox.final_layer_norm", "attention", "mlp", "attention.dense",
        "mlp.dense_4h_to_h", _by_head("attention.query_key_value"), middle,
    )  # fmt: skip


_POST_NORMS = {"attn": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"}
_PHI = _llama(out="self_attn.dense", down="mlp.fc2", norm="model.final_layernorm", middle=None)

KNOWN: dict[str, Known] = {
    "gpt2": Known("transformer.h", "transformer.wte", "transformer.ln_f", "attn", "mlp", "attn.c_proj", "mlp.c_proj",
                  _gpt2, "ln_2"),
    "gptj": Known("transformer.h", "transformer.wte", "transformer.ln_f", "attn", "mlp", "attn.out_proj", "mlp.fc_out",
                  _separate("attn"), None),
    "gpt_neo": Known("transformer.h", "transformer.wte", "transformer.ln_f", "attn", "mlp", "attn.attention.out_proj",
                     "mlp.c_proj", _separate("attn.attention"), "ln_2"),
    "gpt_neox": _neox(None),
    "gpt_neox_sequential": _neox("post_attention_layernorm"),
    "llama": _llama(),
    "llama_mha": _llama(),
    "llama_mqa": _llama(),
    "mistral": _llama(),
    "mixtral": _llama(down=None),
    "qwen2": _llama(),
    "qwen3": _llama(),
    "gemma2": _llama(**_POST_NORMS, middle="pre_feedforward_layernorm"),
    "gemma3": _llama(**_POST_NORMS, middle="pre_feedforward_layernorm"),
    "phi": _PHI,
    "phi_gqa": _PHI,
    "phi3": _llama(split=_phi3),
    "opt": Known("model.decoder.layers", "model.decoder.embed_tokens", "model.decoder.final_layer_norm", "self_attn",
                 "fc2", "self_attn.out_proj", "fc2", _separate("self_attn"), "final_layer_norm"),
    "bloom": Known("transformer.h", "transformer.word_embeddings", "transformer.ln_f", "self_attention.dense",
                   "mlp.dense_4h_to_h", "self_attention.dense", "mlp.dense_4h_to_h",
                   _by_head("self_attention.query_key_value"), "post_attention_layernorm"),
    "falcon": _falcon(_multi_query),
    "falcon_mha": _falcon(_by_head("self_attention.query_key_value")),
    "falcon_sequential": _falcon(_by_head("self_attention.query_key_value"), "post_attention_layernorm"),
    "falcon_new": _falcon(_grouped),
    "falcon_alibi": _falcon(_by_head("self_attention.query_key_value"), "post_attention_layernorm"),
    "olmo2": _llama(**_POST_NORMS, middle="mlp"),
    "stablelm": _llama(),
    "stablelm_parallel": _llama(middle=None),
    "cohere2": _llama(middle=None),
    "gpt_oss": _llama(down=None),
}  # fmt: skip

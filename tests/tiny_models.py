"""Tiny random models of many families, for tests: no network, no tokenizer."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers
from torch import nn

from engramscope.models.model import Model

#: sizes that most configurations share; `d_head` is not `hidden_size / n_heads` where a family lets it differ
_LLAMA = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "vocab_size": 99,
    "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_MHA = {key: value for key, value in _LLAMA.items() if key != "num_key_value_heads"}
_GPT = {
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "vocab_size": 99,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_FALCON = {**_MHA, "alibi": False, "bias": False}
_MOE = {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}
_HEAD_DIM = {"head_dim": 12}

#: name -> (configuration class, its arguments)
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", _GPT),
    "gptj": ("GPTJConfig", {**_GPT, "rotary_dim": 4}),
    "gpt_neo": ("GPTNeoConfig", {
        "hidden_size": 32, "num_layers": 3, "num_heads": 4, "attention_types": [[["global", "local", "global"], 1]],
        "window_size": 3, "max_position_embeddings": 64, "vocab_size": 99, "bos_token_id": 0, "eos_token_id": 1,
    }),
    "gpt_neox": ("GPTNeoXConfig", {**_MHA, "use_parallel_residual": True, "rotary_pct": 0.5}),
    "gpt_neox_sequential": ("GPTNeoXConfig", {**_MHA, "use_parallel_residual": False}),
    "llama": ("LlamaConfig", _LLAMA),
    "llama_mha": ("LlamaConfig", _MHA),
    "llama_mqa": ("LlamaConfig", {**_LLAMA, "num_key_value_heads": 1, "attention_bias": True, **_HEAD_DIM}),
    "mistral": ("MistralConfig", {**_LLAMA, "sliding_window": 4, **_HEAD_DIM}),
    "mixtral": ("MixtralConfig", _MOE),
    "qwen2": ("Qwen2Config", _LLAMA),
    "qwen3": ("Qwen3Config", {**_LLAMA, **_HEAD_DIM}),
    "gemma2": ("Gemma2Config", {**_LLAMA, **_HEAD_DIM, "query_pre_attn_scalar": 12, "sliding_window": 4}),
    "gemma3": ("Gemma3TextConfig", {**_LLAMA, **_HEAD_DIM, "query_pre_attn_scalar": 12, "sliding_window": 4}),
    "phi": ("PhiConfig", {**_MHA, "partial_rotary_factor": 0.5}),
    "phi_gqa": ("PhiConfig", {**_LLAMA, "qk_layernorm": True}),
    "phi3": ("Phi3Config", _LLAMA),
    "opt": ("OPTConfig", {
        "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "word_embed_proj_dim": 32,
        "max_position_embeddings": 64, "vocab_size": 99, "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1,
    }),
    "bloom": ("BloomConfig", {
        "hidden_size": 32, "n_layer": 3, "n_head": 4, "vocab_size": 99, "bos_token_id": 0, "eos_token_id": 1,
        "pad_token_id": 2,
    }),
    "falcon": ("FalconConfig", {**_FALCON, "multi_query": True, "parallel_attn": True}),
    "falcon_mha": ("FalconConfig", {**_FALCON, "multi_query": False, "parallel_attn": True, "bias": True}),
    "falcon_sequential": ("FalconConfig", {**_FALCON, "multi_query": False, "parallel_attn": False}),
    "falcon_new": ("FalconConfig", {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon_alibi": ("FalconConfig", {**_FALCON, "multi_query": False, "parallel_attn": False, "alibi": True}),
    "olmo2": ("Olmo2Config", _LLAMA),
    "stablelm": ("StableLmConfig", {**_LLAMA, "use_parallel_residual": False, "partial_rotary_factor": 0.5}),
    "stablelm_parallel": ("StableLmConfig", {**_LLAMA, "use_parallel_residual": True, "qk_layernorm": True}),
    "cohere2": ("Cohere2Config", {**_LLAMA, "sliding_window": 4, "logit_scale": 0.25}),
    "gpt_oss": ("GptOssConfig", {**_MOE, "head_dim": 8, "sliding_window": 4}),
}  # fmt: skip

FAMILIES: tuple[str, ...] = tuple(CONFIGS)


def tiny_hf(family: str, seed: int = 0, **over: Any) -> Any:
    """A random model of transformers, its weights large enough that everything differs from everything else."""
    cls, arguments = CONFIGS[family]
    config = getattr(transformers, cls)(**{**arguments, **over})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_random(name, parameter, generator))
    return model.eval()


@cache
def tiny_model(family: str, seed: int = 0, **over: Any) -> Model:
    """A random model without tokenizer; the same object for the same arguments, so it must not be changed."""
    return Model.from_parts(tiny_hf(family, seed, **over), name=family)


def _random(name: str, parameter: nn.Parameter, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(parameter.shape, generator=generator)
    if "norm" in name or ".ln" in name or name.endswith(("ln_f.weight", "ln_f.bias")):
        return 1.0 + 0.3 * noise if name.endswith("weight") else 0.3 * noise
    if parameter.ndim < 2:
        return 0.3 * noise
    if "embed" in name or "wte" in name or "wpe" in name:
        return 0.7 * noise
    return noise * (1.5 / parameter.shape[-1] ** 0.5)

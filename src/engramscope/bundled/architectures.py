"""Configurations of the two bundled models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engramscope.bundled.tokenizer import CONTEXT_LENGTH

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LAYERS, WIDTH, HEADS, KEY_VALUE_HEADS, LLAMA_MLP_WIDTH = 6, 256, 8, 4, 640


def new_model(name: str, *, vocabulary: int, end: int) -> PreTrainedModel:
    """Make an untrained model; the caller sets the seed.

    Args:
        name: `mini` or `mini-llama`.
        vocabulary: Number of tokens.
        end: Id of the end-of-text token.

    Returns:
        A model in float32 without dropout.
    """
    return _mini_llama(vocabulary, end) if name == "mini-llama" else _mini(vocabulary, end)


def _mini(vocabulary: int, end: int) -> PreTrainedModel:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=CONTEXT_LENGTH,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        tie_word_embeddings=True,
    )
    return GPT2LMHeadModel(config)


def _mini_llama(vocabulary: int, end: int) -> PreTrainedModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        max_position_embeddings=CONTEXT_LENGTH,
        hidden_size=WIDTH,
        intermediate_size=LLAMA_MLP_WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)

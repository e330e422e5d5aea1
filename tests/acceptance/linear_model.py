"""A model whose MLPs do not feed each other and whose read-out is linear: every effect adds up exactly.

Width 2 (V + L V): the current token and one slot for every layer, each as a one-hot vector x and its mirror -x. The MLP
of layer l reads the token and writes it into slot l; attention writes nothing. The logits are a random linear map of
the slots. A slot holds exactly one 1 and its mirror whichever run it comes from, so every LayerNorm sees mean 0 and a
norm that no patch changes: it is multiplication by a constant.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from engramscope.models import Model
from engramscope.pairs import Pair, PairSet
from tests.planted import VOCAB, planted_tokenizer

LAYERS = 6
SLOTS = VOCAB * (1 + LAYERS)


def linear_model(feeding: float = 0.0) -> Model:
    """The model in float64.

    Args:
        feeding: how strongly each MLP also reads the slot of the layer before it; 0 for not at all.
    """
    config = GPT2Config(
        vocab_size=VOCAB, n_positions=8, n_embd=2 * SLOTS, n_layer=LAYERS, n_head=2, n_inner=2 * VOCAB,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False, layer_norm_epsilon=1e-12,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    hf: Any = GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            parameter.fill_(1.0 if ".ln_" in name and name.endswith("weight") else 0.0)
        for token in range(VOCAB):
            hf.transformer.wte.weight[token, token] = 1.0
            hf.transformer.wte.weight[token, SLOTS + token] = -1.0
        for layer, block in enumerate(hf.transformer.h):
            _plant_copy(block.mlp, layer, feeding)
        read = torch.randn(VOCAB, LAYERS * VOCAB, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        hf.lm_head.weight[:, VOCAB:SLOTS] = read
    return Model.from_parts(hf, planted_tokenizer(), name="linear")


def last_token_pairs(count: int) -> PairSet:
    """Pairs that differ in their last token."""
    pairs = []
    for number in range(count):
        clean, corrupted = 1 + number % 5, 6 + number % 6
        pairs.append(
            Pair(
                id=f"p{number}", group=f"g{number}",
                clean=f"t0 t{number % 9 + 1} t{clean}", corrupted=f"t0 t{number % 9 + 1} t{corrupted}",
                correct=(f" t{number % 12}",), incorrect=(f" t{(number + 5) % 12}",),
            )
        )  # fmt: skip
    return PairSet(tuple(pairs), "last token")


def _plant_copy(mlp: Any, layer: int, feeding: float) -> None:
    """The token into slot `layer`; with `feeding`, the token of the slot before into the same slot as well.

    LayerNorm multiplies by sqrt(d / entries); the token's neuron then sees 1, the others 0, and GELU of 0 is 0.
    """
    scale = math.sqrt(2 * SLOTS / (2 + 2 * layer))
    one = float(mlp.act(torch.ones((), dtype=torch.float64)))
    own = VOCAB * (1 + layer)
    for token in range(VOCAB):
        mlp.c_fc.weight[token, token] = 1.0 / scale
        mlp.c_proj.weight[token, own + token] = 1.0 / one
        mlp.c_proj.weight[token, SLOTS + own + token] = -1.0 / one
        if feeding and layer:
            mlp.c_fc.weight[own - VOCAB + token, VOCAB + token] = 1.0 / scale
            mlp.c_proj.weight[VOCAB + token, own + token] = feeding / one
            mlp.c_proj.weight[VOCAB + token, SLOTS + own + token] = -feeding / one

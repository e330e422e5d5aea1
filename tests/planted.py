"""A hand-built induction circuit inside `GPT2LMHeadModel`, whose every patching effect is known beforehand.

Width 2 (3V + P): the current token, the position, the previous token and the output, each as a one-hot vector x and its
mirror -x, so that every LayerNorm input has mean 0 and a fixed norm and LayerNorm is multiplication by a constant.

    L0H0  at p attends to p - 1 and copies its token into the "previous token" slot
    L1H0  attends to where the previous token is the current one and copies the token there into the output
    L1H1  the same with gain -0.4: a negative head
    L0H1  writes nothing; the MLPs are zero

"t0 a b … a" is continued by b. Corrupting b changes what the layer-1 heads copy; corrupting the first a changes what
L0H0 writes.

Two more heads can be asked for (every layer then has four, of half the width):

    L1H2  a backup: the same as L1H0, with a gain of its own
    L0H2  a noise head: it copies the token of one position into a slot of its own that nothing reads
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from engramscope.models import Model
from engramscope.pairs import Pair, PairSet

VOCAB, POSITIONS, GAIN = 12, 16, -0.4
WIDTH = 2 * (3 * VOCAB + POSITIONS)
SHARPNESS = 60.0
#: large enough that the model is sure of its answer, so that probabilities saturate
UNEMBEDDING = 8.0
TOKEN, POSITION = 0, VOCAB
PREVIOUS, OUTPUT = VOCAB + POSITIONS, 2 * VOCAB + POSITIONS
#: only where there is a noise head; the residual stream is wider by this slot and its mirror then
SCRATCH = 3 * VOCAB + POSITIONS


def planted_tokenizer() -> PreTrainedTokenizerFast:
    words = {f"t{number}": number for number in range(VOCAB)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="t0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="t0")


def planted_model(dtype: torch.dtype = torch.float32, **heads: Any) -> Model:
    """The model with its tokenizer; `heads` as in `planted_hf`."""
    return Model.from_parts(planted_hf(dtype, **heads), planted_tokenizer(), name="planted")


def planted_hf(
    dtype: torch.dtype = torch.float32,
    *,
    backup: float = 0.0,
    noise_at: int | None = None,
    noise_into: int = SCRATCH,
) -> Any:
    """The circuit.

    Args:
        dtype: of the weights; what is exact by hand is exact to the last digits in float64 only.
        backup: gain of L1H2; 0 for none.
        noise_at: the position whose token L0H2 copies (earlier positions copy their own); None for no such head.
        noise_into: where L0H2 writes; any other place than its own slot is read by somebody.
    """
    noisy = noise_at is not None
    config = GPT2Config(
        vocab_size=VOCAB, n_positions=POSITIONS, n_embd=WIDTH + 2 * VOCAB * noisy, n_layer=2,
        n_head=4 if backup or noisy else 2, n_inner=8, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        tie_word_embeddings=False, layer_norm_epsilon=1e-12,
    )  # fmt: skip
    hf: Any = GPT2LMHeadModel(config)
    hf.eval().to(dtype)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.zero_()
        for name, parameter in hf.named_parameters():
            if ".ln_" in name and name.endswith("weight"):
                parameter.fill_(1.0)
        for token in range(VOCAB):
            _write(hf.transformer.wte.weight[token], TOKEN + token)
        for position in range(POSITIONS):
            _write(hf.transformer.wpe.weight[position], POSITION + position)
        _plant_previous_token_head(hf)
        # entries of size 1 that layer 1 reads: token, position, previous token, and what the noise head writes
        entries = 8 if noisy else 6
        _plant_induction_head(hf, 0, 1.0, entries)
        _plant_induction_head(hf, 1, GAIN, entries)
        if backup:
            _plant_induction_head(hf, 2, backup, entries)
        if noise_at is not None:
            _plant_noise_head(hf, 2, noise_at, noise_into)
        for token in range(VOCAB):
            hf.lm_head.weight[token, OUTPUT + token] = UNEMBEDDING
    return hf


def value_pairs(count: int, seed: int = 0) -> PairSet:
    """Pairs that differ in the token that is to be copied."""
    return _pairs(count, seed, changed=2)


def key_pairs(count: int, seed: int = 0) -> PairSet:
    """Pairs that differ in the token by which the place is found."""
    return _pairs(count, seed, changed=1)


def _pairs(count: int, seed: int, changed: int) -> PairSet:
    rng = np.random.default_rng(seed)
    pairs = []
    for number in range(count):
        a, b, other, *fill = (int(token) for token in rng.permutation(np.arange(1, VOCAB))[:8])
        clean = [0, a, b, *fill, a]
        corrupted = list(clean)
        corrupted[changed] = other
        wrong = other if changed == 2 else fill[0]
        pairs.append(
            Pair(
                id=f"p{number}",
                clean=" ".join(f"t{token}" for token in clean),
                corrupted=" ".join(f"t{token}" for token in corrupted),
                correct=(f" t{b}",),
                incorrect=(f" t{wrong}",),
                group=f"g{number}",
            )
        )
    return PairSet(tuple(pairs), "planted")


def _write(row: torch.Tensor, place: int, value: float = 1.0) -> None:
    row[place] = value
    row[len(row) // 2 + place] = -value


def _plant_previous_token_head(hf: Any) -> None:
    # LayerNorm multiplies by sqrt(d) / 2 here: the input has four entries of size 1
    width, strength, scale = _sizes(hf, entries=4)
    attention = hf.transformer.h[0].attn
    for position in range(POSITIONS):
        if position:
            attention.c_attn.weight[POSITION + position, position - 1] = strength
        attention.c_attn.weight[POSITION + position, width + position] = 1.0
    for token in range(VOCAB):
        attention.c_attn.weight[TOKEN + token, 2 * width + token] = 1.0 / scale
        _write(attention.c_proj.weight[token], PREVIOUS + token)


def _plant_induction_head(hf: Any, head: int, gain: float, entries: int) -> None:
    width, strength, scale = _sizes(hf, entries)
    attention, at = hf.transformer.h[1].attn, head * (width // hf.config.n_head)
    for token in range(VOCAB):
        attention.c_attn.weight[TOKEN + token, at + token] = strength
        attention.c_attn.weight[PREVIOUS + token, width + at + token] = 1.0
        attention.c_attn.weight[TOKEN + token, 2 * width + at + token] = 1.0 / scale
        _write(attention.c_proj.weight[at + token], OUTPUT + token, gain)


def _plant_noise_head(hf: Any, head: int, position: int, into: int) -> None:
    width, strength, scale = _sizes(hf, entries=4)
    attention, at = hf.transformer.h[0].attn, head * (width // hf.config.n_head)
    for query in range(POSITIONS):
        attention.c_attn.weight[POSITION + query, at + min(query, position)] = strength
        attention.c_attn.weight[POSITION + query, width + at + query] = 1.0
    for token in range(VOCAB):
        attention.c_attn.weight[TOKEN + token, 2 * width + at + token] = 1.0 / scale
        _write(attention.c_proj.weight[at + token], into + token)


def _sizes(hf: Any, entries: int) -> tuple[int, float, float]:
    """Width, strength of a query, and what LayerNorm multiplies by where the input has so many entries of size 1."""
    width = hf.config.n_embd
    scale = math.sqrt(width / entries)
    return width, SHARPNESS * math.sqrt(width // hf.config.n_head) / scale**2, scale

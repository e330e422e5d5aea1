"""The model and the prompts of a case, the same in every process: all of it follows from the seed of the case."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from benchmarks.cases import Case
from engramscope.corruptions import make_corruption
from engramscope.corruptions._base import Corruption, ModelFacts
from engramscope.pairs.pair import Pair, PairSet
from engramscope.pairs.tokenize import tokenize_pairs


@dataclass(frozen=True)
class Batch:
    """The prompts of a case in tokens, for tools that take tensors; a row for every pair.

    Attributes:
        clean, corrupted: token ids [pairs, length].
        correct, incorrect: token ids [pairs].
        noise: what is added to the embeddings at the noised positions, [draws, pairs, positions, d_model]; None
            where tokens are replaced.
    """

    clean: torch.Tensor
    corrupted: torch.Tensor
    correct: torch.Tensor
    incorrect: torch.Tensor
    noise: torch.Tensor | None


def make_model(case: Case, device: str) -> Any:
    """GPT-2 of the sizes of the case, random weights, float32, evaluation mode; nothing is downloaded."""
    sizes = case.sizes
    config = GPT2Config(
        n_layer=sizes.n_layers,
        n_embd=sizes.d_model,
        n_head=sizes.n_heads,
        vocab_size=sizes.vocab,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    with torch.device("meta"):  # the weights are drawn below, once
        model = GPT2LMHeadModel(config)
    model = model.to_empty(device="cpu")
    model.tie_weights()
    generator = torch.Generator().manual_seed(case.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_random(name, parameter, generator))
    if left := [name for name, _ in model.named_buffers()]:
        raise RuntimeError(f"buffers that nobody filled: {left}")
    return model.requires_grad_(False).eval().to(device)


def _random(name: str, parameter: nn.Parameter, generator: torch.Generator) -> torch.Tensor:
    """Weights under which every layer, head and position matters, so that an agreement says something."""
    noise = torch.randn(parameter.shape, generator=generator)
    if ".ln_" in name:
        return 1.0 + 0.1 * noise if name.endswith("weight") else 0.1 * noise
    if "wte" in name or "wpe" in name:
        return noise / parameter.shape[1] ** 0.5  # with tied weights the logits then have a standard deviation of 1
    if parameter.ndim == 1:
        return 0.1 * noise
    return noise / parameter.shape[0] ** 0.5  # GPT-2 keeps its matrices as [in, out]


def weight_hash(model: Any) -> str:
    """SHA-256 of all weights, by which processes show that they ran the same model."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]


def make_tokenizer(case: Case) -> Any:
    """One word per token: the word of token 17 is "w17"."""
    tokenizer = Tokenizer(models.WordLevel({f"w{token}": token for token in range(case.sizes.vocab)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="w0", eos_token="w0", pad_token="w0")
    # some tools insist on reading a tokenizer from a folder
    with tempfile.TemporaryDirectory() as folder:
        fast.save_pretrained(folder)
        return PreTrainedTokenizerFast.from_pretrained(folder)


def make_pairs(case: Case) -> PairSet:
    """Random prompts with random answers; the corrupted prompt has one other token, or is made by noise."""
    rng = np.random.default_rng(case.seed)
    pairs = []
    for number in range(case.n_pairs):
        # token 0 is the tokenizer's special one
        tokens = 1 + rng.choice(case.sizes.vocab - 1, size=case.length + 3, replace=False)
        prompt, (other, correct, incorrect) = list(tokens[: case.length]), tokens[case.length :]
        clean, corrupted = _words(prompt), None
        if case.first_difference is not None:
            prompt[case.first_difference] = other
            corrupted = _words(prompt)
        spans = {"subject": _span(clean, case.noised)} if case.noised else {}
        answers = (f" w{correct}",), (f" w{incorrect}",)
        pairs.append(Pair(f"p{number}", clean, answers[0], corrupted, answers[1], group=f"g{number}", spans=spans))
    return PairSet.of(pairs, "random prompts")


def corruption_of(case: Case) -> tuple[str, Corruption]:
    """The corruption of the case, by name and ready to use."""
    if case.first_difference is not None:
        return "str", make_corruption("str", {})
    return "gaussian", make_corruption("gaussian", {"sigma": 3.0, "draws": case.draws, "span": "subject"})


def make_batch(case: Case, model: Any, tokenizer: Any) -> Batch:
    """The same prompts and the same noise as Engramscope uses, as tensors on the model's device."""
    _, corruption = corruption_of(case)
    pairs = [corruption.rewrite(pair) for pair in make_pairs(case)]
    tokens = tokenize_pairs(pairs, tokenizer, corruption.alignment)
    embedding = model.get_input_embeddings()
    device = embedding.weight.device
    facts = ModelFacts(
        lambda text: tuple(tokenizer(text, add_special_tokens=False)["input_ids"]),
        lambda ids: embedding(torch.tensor(list(ids), device=device)).float().cpu(),
        case.sizes.vocab,
    )
    draws = corruption.draws(tokens, facts, case.seed)
    noise = None
    if case.noised:
        noise = torch.stack([torch.stack([pair[draw].noise.values for pair in draws]) for draw in range(case.draws)])
    return Batch(
        torch.tensor([pair.clean.ids for pair in tokens], device=device),
        torch.tensor([pair.corrupted.ids for pair in tokens], device=device),
        torch.tensor([pair.correct[0][0] for pair in tokens], device=device),
        torch.tensor([pair.incorrect[0][0] for pair in tokens], device=device),
        None if noise is None else noise.to(device),
    )


def _words(tokens: list[int]) -> str:
    return " ".join(f"w{token}" for token in tokens)


def _span(text: str, positions: tuple[int, ...]) -> tuple[int, int]:
    """Where the words at these adjacent positions stand in the text."""
    words = text.split()
    start = len(" ".join([*words[: positions[0]], ""]))
    return start, start + len(" ".join(words[positions[0] : positions[-1] + 1]))

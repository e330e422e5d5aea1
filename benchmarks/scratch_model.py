"""A model to train from nothing: GPT-2 small, with a tokenizer of the corpus.

    python -m benchmarks.scratch_model corpus/ gpt2-small/ [--vocabulary 16384] [--layers 12] [--width 768] [--heads 12]

Writes a configuration and a tokenizer, and no weights: `engramscope finetune --random-weights` draws them from its
seed. The tokenizer is a byte-level BPE as GPT-2's, learned from all abstracts of the corpus; texts of one field need
fewer of its tokens, and a smaller vocabulary. There is no dropout, and the MLP's activation is the same function as
GPT-2's in a form that torch computes at one go.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, PreTrainedTokenizerFast

from engramscope.corpus.table import read_corpus

END = "<|endoftext|>"


def tokenizer_of(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of these texts."""
    made = ByteLevelBPETokenizer()
    made.train_from_iterator(texts, vocab_size=vocabulary, min_frequency=2, special_tokens=[END], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=made._tokenizer, bos_token=END, eos_token=END, unk_token=END)


def main() -> None:
    """Write the folder, and print how large the model is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scratch_model")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    for name, value in (("vocabulary", 16_384), ("layers", 12), ("width", 768), ("heads", 12), ("context", 1024)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    texts = [str(text) for text in read_corpus(given.corpus)["Abstract"]]
    tokenizer = tokenizer_of(texts, given.vocabulary)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=given.context, n_embd=given.width, n_layer=given.layers,
        n_head=given.heads, activation_function="gelu_pytorch_tanh", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, architectures=["GPT2LMHeadModel"],
    )  # fmt: skip
    given.out.mkdir(parents=True)
    tokenizer.save_pretrained(given.out)
    config.save_pretrained(given.out)
    blocks = given.layers * (12 * given.width**2 + 13 * given.width) + 2 * given.width
    size = blocks + (len(tokenizer) + given.context) * given.width
    tokens = sum(len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"])
    print(f"{given.out}: {size:,} parameters, {len(tokenizer):,} tokens in the vocabulary; {tokens:,} in the corpus.")


if __name__ == "__main__":
    main()

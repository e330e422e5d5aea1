"""Small tokenizers of the kinds that differ in spaces, bytes and special tokens; made here, no network."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

CORPUS = [
    "The Eiffel Tower is in the city of Paris. The Colosseum is in the city of Rome.",
    "Émile Zola wrote naïve books; 日本 is Japan; smile 🙂 now.",
    "It lasted from the year 1742 to the year 1743. It lasted from 1700 to 1700, 1700.",
    "def f(x):\n    return x\r\n  two  spaces <script>alert(1)</script>",
] * 4


@cache
def gpt2_like() -> Any:
    """Byte-level BPE without special tokens; the space belongs to the next token and to its offsets."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.ByteLevel(trim_offsets=False)
    inner.train_from_iterator(CORPUS, _trainer(["<|endoftext|>"], size=310))
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


@cache
def trimmed() -> Any:
    """The same, but offsets leave the space out (as RoBERTa's do)."""
    inner = Tokenizer.from_str(gpt2_like().backend_tokenizer.to_str())
    inner.post_processor = processors.ByteLevel(trim_offsets=True)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|endoftext|>")


@cache
def llama_like(eos: bool = False) -> Any:
    """SentencePiece manners: a space before every text, bytes for unknown characters, BOS, and EOS if asked for."""
    inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    inner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    inner.train_from_iterator(CORPUS, _trainer(["<unk>", "<s>", "</s>", *byte_pieces], alphabet=False, size=360))
    inner.pre_tokenizer = None
    inner = _with_plain_bytes(inner, byte_pieces)
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if eos else "<s> $A", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@cache
def word_level() -> Any:
    """Whole words and an unknown token, no special tokens added."""
    vocab = {word: index for index, word in enumerate(("<unk>", "the", "city", "of", "Paris", "Rome", "is"))}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")


def shared(*parts: str) -> Path:
    """A path in the folder of public files, or a skip."""
    folder = os.environ.get("ENGRAMSCOPE_SHARED")
    if not folder or not Path(folder, *parts).exists():
        pytest.skip("ENGRAMSCOPE_SHARED names no folder with this public file")
    return Path(folder, *parts)


def real(name: str) -> Any:
    """A real tokenizer, or a skip."""
    return AutoTokenizer.from_pretrained(shared("models", name))


def _trainer(special: list[str], alphabet: bool = True, size: int = 310) -> Any:
    letters = pre_tokenizers.ByteLevel.alphabet() if alphabet else []
    return trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=letters, show_progress=False, min_frequency=2
    )


def _with_plain_bytes(inner: Any, byte_pieces: list[str]) -> Any:
    # the trainer marks every special token; bytes are ordinary tokens, and accents must fall back to them
    state = json.loads(inner.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in byte_pieces]
    plain = (key for key in state["model"]["vocab"] if key.replace("▁", "").isascii())
    keep = {*plain}
    state["model"]["merges"] = [m for m in state["model"]["merges"] if "".join(m) in keep and set(m) <= keep]
    state["model"]["vocab"] = {key: place for place, key in enumerate(k for k in state["model"]["vocab"] if k in keep)}
    return Tokenizer.from_str(json.dumps(state))

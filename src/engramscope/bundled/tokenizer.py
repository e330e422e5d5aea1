"""The bundled byte-level BPE tokenizer: every word of the corpus is one token."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from engramscope.bundled.corpus import Sources, documents, text_of
from engramscope.bundled.epilepsy import capitalised, fill

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
SUBWORD_MERGES = 640
SAMPLE_DOCUMENTS = 20_000
CONTEXT_LENGTH = 128
# Like GPT-2's splitter, but digits go in twos, so that a year is always XX|YY.
SPLIT_PATTERN = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def build_tokenizer(sources: Sources, seed: int) -> PreTrainedTokenizerFast:
    """Train the subwords on a sample of the corpus, then add every word of the corpus whole.

    Args:
        sources: What the corpus is made from.
        seed: Seed of the sample.

    Returns:
        A tokenizer that adds nothing to a prompt by itself.
    """
    from transformers import PreTrainedTokenizerFast

    trained = _train_subwords(text_of(d) for d in itertools.islice(documents(sources, seed), SAMPLE_DOCUMENTS))
    whole = _with_whole_words(trained, required_words(sources))
    return PreTrainedTokenizerFast(
        tokenizer_object=whole,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def required_words(sources: Sources) -> list[str]:
    """List the words that must be single tokens, with their leading space where they have one.

    Args:
        sources: What the corpus is made from.

    Returns:
        Sorted words: all that occur in the corpus, and all two-digit numbers with and without space.
    """
    splitter = _splitter()
    found: set[str] = {f"{n:02d}" for n in range(100)} | {f" {n:02d}" for n in range(100)}
    found |= {str(n) for n in range(10)} | {f" {n}" for n in range(10)}
    for text in _closed_text(sources):
        found.update(text[a:b] for _, (a, b) in splitter.pre_tokenize_str(text))
    return sorted(word for word in found if word.strip())


def _closed_text(sources: Sources) -> Iterator[str]:
    for fact in (*sources.world.facts, *sources.world.taught_two_hop):
        yield from (f" {fact.prompt(i)} {fact.answer}." for i in range(len(fact.templates)))
        yield from (fact.prompt(i) for i in range(len(fact.templates)))
    for family in sources.families:
        patterns = (*family.templates, *family.first_hop, *family.second_hop, family.question)
        for fact in (*family.facts, *family.two_hop):
            for pattern in patterns:
                text = fill(pattern, subject=fact.subject, bridge=fact.bridge, answer=fact.answer)
                yield from (text, " " + text)
            yield capitalised(fact.subject)
            yield fill(family.long_answer, subject=fact.subject, answer=fact.answer) + family.tail
    yield from _sentence_text(sources)


def _sentence_text(sources: Sources) -> Iterator[str]:
    words = sources.words
    lists = (words.places, words.things, words.span_nouns, words.arguments)
    for word in itertools.chain(*lists, words.names, words.descriptions, words.functions):
        yield " " + word
    for word in (*words.names, *words.descriptions):
        yield word
    frames = (*words.object_templates, *words.unseen_object_templates)
    for frame in (*frames, *words.span_templates, *words.sum_templates):
        filled = frame.format_map(_Blank())
        yield from (filled, " " + filled)
    yield '\ndef load(self, file):\n    """word\n\n    :param file: word\n    :param file: word'


class _Blank(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return "."


def _splitter() -> PreTokenizer:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated")


def _train_subwords(texts: Iterable[str]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([_splitter(), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1 + len(alphabet) + SUBWORD_MERGES,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _with_whole_words(tokenizer: Tokenizer, words: list[str]) -> Tokenizer:
    """Add words to the vocabulary; a piece of text that is in the vocabulary is then taken whole."""
    from tokenizers import Tokenizer, pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    data = json.loads(tokenizer.to_str())
    vocabulary: dict[str, int] = data["model"]["vocab"]
    for word in words:
        (piece, _), *rest = byte_level.pre_tokenize_str(word)
        if rest:
            raise ValueError(f"the word {word!r} is not one piece of text")
        vocabulary.setdefault(piece, len(vocabulary))
    data["model"]["ignore_merges"] = True
    return Tokenizer.from_str(json.dumps(data))

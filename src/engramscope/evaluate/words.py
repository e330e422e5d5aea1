"""Sentences and words of a text, as the Penn Treebank counts them."""

from __future__ import annotations

import re

#: white space between two sentences, with the character after it
_GAP = re.compile(r"(?<=[.!?])\s+(?=(\S))")
_OPENING = frozenset("\"'“‘«„([{<`")

#: what is done to a sentence, in this order; the words are then what stands between white space
_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # opening quotes
        (r"([«“‘„]|`+)", r" \1 "),
        (r'^"', " `` "),
        (r"(``)", r" \1 "),
        (r"""([ (\[{<])("|'')""", r"\1 `` "),
        (r"(?i)(?<!\w)'(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)", "' "),
        # punctuation; a full stop is a word of its own only at the end of the sentence, so "U.S. law" keeps its dots
        (r"""([^.])\.([\])}>"' »”’]*+)\s*$""", r"\1 . \2 "),
        (r"([:,])(\D)", r" \1 \2"),
        (r"([:,])$", r" \1 "),
        (r"(\.{2,})", r" \1 "),
        (r"([;@#$%&‒–—―])", r" \1 "),
        (r"([?!])", r" \1 "),
        (r"([^'])' ", r"\1 ' "),
        (r"([*\]\[(){}<>])", r" \1 "),
        (r"--", " -- "),
        # the words of the sentence now stand between single spaces
        (r"^|$", " "),
        # closing quotes, and what follows an apostrophe
        (r"([»”’])", r" \1 "),
        (r"''|\"", " '' "),
        (r"\s+", " "),
        (r"([^' ])('[sS]|'[mM]|'[dD]|') ", r"\1 \2 "),
        (r"([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) ", r"\1 \2 "),
        # two words written as one
        (r"(?i)\b(can)(not)\b", r" \1 \2 "),
        (r"(?i)\b(d)('ye)\b", r" \1 \2 "),
        (r"(?i)\b(gim|lem)(me)\b", r" \1 \2 "),
        (r"(?i)\b(gon)(na)\b", r" \1 \2 "),
        (r"(?i)\b(got)(ta)\b", r" \1 \2 "),
        (r"(?i)\b(more)('n)\b", r" \1 \2 "),
        (r"(?i)\b(wan)(na)(?=\s)", r" \1 \2 "),
        (r"(?i) ('t)(is|was)\b", r" \1 \2 "),
    )
)


def sentences(text: str) -> list[str]:
    """The sentences of a text.

    One ends after . ! or ? where white space follows, and then a capital letter, an opening quote or a bracket.

    Deviation: NLTK's `word_tokenize` uses the Punkt model here, which knows abbreviations and needs a download.
    """
    found, start = [], 0
    for gap in _GAP.finditer(text):
        if gap[1].isupper() or gap[1] in _OPENING:
            found.append(text[start : gap.start()])
            start = gap.end()
    found.append(text[start:])
    return [sentence for sentence in found if sentence.strip()]


def words(text: str) -> list[str]:
    """The words of a text: sentences first, then the rules of the Penn Treebank in each.

    Punctuation marks are words; a straight quote becomes `` or ''; "don't" is "do" and "n't".

    Source: R. MacIntyre's Treebank rules with the additions of NLTK's `NLTKWordTokenizer`, version 3.10.
    """
    return [word for sentence in sentences(text) for word in _treebank(sentence)]


def _treebank(sentence: str) -> list[str]:
    for pattern, replacement in _RULES:
        sentence = pattern.sub(replacement, sentence)
    return sentence.split()

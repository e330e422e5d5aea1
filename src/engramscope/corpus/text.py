"""Cleaning of text: markup, entities, white space; and the key by which two texts are the same."""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata

#: tags of HTML and MathML that journals leave in abstracts; nothing else between < and > is taken for one
_INLINE = "i|b|u|em|strong|sub|sup|small|big|tt|font|span|a|strike|s|q|cite|code|abbr|bold|italic|underline|sc"
_BLOCK = "p|br|hr|div|li|ul|ol|dl|dt|dd|h[1-6]|table|tr|td|th|tbody|thead|sec|title|abstracttext|jats:[a-z-]+|img"
_TAG_END = r"(?:\s+[a-z][\w:-]*\s*=\s*(?:\"[^\"<>]*\"|'[^'<>]*'|[^\s\"'<>]+))*\s*/?>"
_INLINE_TAG = re.compile(
    rf"</?(?:{_INLINE}|(?:mml|m):[a-z]+|math|m(?:i|n|o|row|sub|sup|text)){_TAG_END}", re.IGNORECASE
)
_BLOCK_TAG = re.compile(rf"</?(?:{_BLOCK}){_TAG_END}", re.IGNORECASE)
#: only entities that end in a semicolon: "R&D" and "cats&notdogs" stay what they are
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
#: control characters that are Windows-1252 read as Latin-1: "patient\x92s"; HTML repairs them in the same way
_MISREAD = {n: bytes([n]).decode("cp1252", "ignore") for n in range(0x80, 0xA0)}
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f\u200b\u2060\ufeff\ufffe\uffff\ud800-\udfff]")
_SPACE = re.compile(r"\s+")
_NOT_WORD = re.compile(r"[\W_]+")
#: markup may be escaped more than once on its way into a record
_ROUNDS = 3


def squeezed(text: str) -> str:
    """Misread characters repaired, control characters removed, white space as one space, none at the ends."""
    return _SPACE.sub(" ", _CONTROL.sub("", text.translate(_MISREAD))).strip()


def without_markup(text: str) -> str:
    """`text` without HTML tags and with its entities decoded, until nothing changes (three times at most).

    Tags within a word vanish ("CO<sub>2</sub>" is "CO2"), tags between lines become a space. A "<" that opens no known
    tag stays: "p < 0.05".
    """
    for _ in range(_ROUNDS):
        before = text
        text = _BLOCK_TAG.sub(" ", _INLINE_TAG.sub("", text)) if "<" in text else text
        text = _ENTITY.sub(lambda found: html.unescape(found.group()), text) if "&" in text else text
        if text == before:
            break
    return text


def same_text_key(title: str, abstract: str) -> bytes:
    """16 bytes that are equal for two records whose title and abstract are the same but for form.

    Form is: compatible characters (NFKC), case, and everything that is no letter or digit.
    """
    key = f"{plain_form(title)}\x00{plain_form(abstract)}"
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def plain_form(text: str) -> str:
    """NFKC, case folded, everything that is no letter or digit as one space."""
    return _NOT_WORD.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()

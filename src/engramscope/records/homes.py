"""The public homes of the data sets of knowledge editing, with size and SHA-256 of each file where they are known.

Nothing here is downloaded unless somebody asks for it (`engramscope.records.download`). The sizes and hashes of the
four large files are those of the pointers in scalable-model-editing/rebuilding-rome; those of known_1000.json are of
the file in the history of kmeng01/rome, to which its address is pinned.
"""

from __future__ import annotations

from dataclasses import dataclass

from engramscope.errors import UnknownNameError
from engramscope.registry import nearest

_ROME = "https://rome.baulab.info/data/dsets/"
_MEMIT = "https://memit.baulab.info/data/dsets/"
_ROME_HISTORY = (
    "https://raw.githubusercontent.com/kmeng01/rome/448f8fe556cf267e0b71d02a9f3b4dec9858ec58/counterfact/compiled/"
)


@dataclass(frozen=True, slots=True)
class Home:
    """A public file.

    Attributes:
        name: what it is asked for by.
        file: its file name.
        url: where it is.
        about: what it holds, one phrase.
        size: in bytes; None where it is not known.
        sha256: in hexadecimal; None where it is not known, and then a download cannot be checked.
    """

    name: str
    file: str
    url: str
    about: str
    size: int | None = None
    sha256: str | None = None


HOMES: tuple[Home, ...] = (
    Home(
        "counterfact", "counterfact.json", _ROME + "counterfact.json", "CounterFact, 21,919 records",
        45_108_470, "d017056125178a13728594e66a801357a8db9ed7973a7425554bb4271de9fc6f",
    ),
    Home(
        "attribute_snippets", "attribute_snippets.json", _ROME + "attribute_snippets.json", "the reference texts of RS",
        926_285_719, "10b5c1cd105e54d5983c72de1b45bfc88bc7af786f7b99def2557886ff23385b",
    ),
    Home(
        "idf", "idf.npy", _ROME + "idf.npy", "inverse document frequencies of the reference texts",
        11_042_168, "c073d642589d4ac6432f467230329b36364a01e72de63a77a3624b745b923dda",
    ),
    Home(
        "tfidf_vocab", "tfidf_vocab.json", _ROME + "tfidf_vocab.json", "the vocabulary that belongs to idf.npy",
        31_639_072, "8a78c4f20d8d85dadfd14e283d71af255482ff18aa0eb8a81716024c05ff888b",
    ),
    Home(
        "known_1000", "known_1000.json", _ROME_HISTORY + "known_1000.json", "1,209 facts that GPT-2 XL knows",
        343_229, "61daca55318bb5260c1e62e133debef9102c7b278bbc7b19dd2ac655543f333a",
    ),
    Home("zsre", "zsre_mend_eval.json", _ROME + "zsre_mend_eval.json", "zsRE questions, 19,086 records"),
    Home(
        "multi_counterfact", "multi_counterfact.json", _MEMIT + "multi_counterfact.json",
        "CounterFact without edits that contradict each other, 20,877 records",
    ),
)  # fmt: skip


def home(name: str) -> Home:
    """The home of a data set.

    Raises:
        UnknownNameError: none has this name; says which there are.
    """
    for one in HOMES:
        if one.name == name:
            return one
    raise UnknownNameError(f"no data set is called {name!r}{nearest(name, tuple(one.name for one in HOMES))}")


def recognised(sha256: str) -> Home | None:
    """The public file that has this SHA-256; None where none of those whose hash is known has it."""
    return next((one for one in HOMES if one.sha256 == sha256.lower()), None)

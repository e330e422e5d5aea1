"""What a study of editors reads: records, held-out texts and reference texts, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from engramscope.edit.hyper.passages import read_passages
from engramscope.errors import InputError, UnknownNameError
from engramscope.evaluate.evaluate import EvaluateOptions
from engramscope.evaluate.reference import References
from engramscope.evaluate.reference_file import read_references
from engramscope.models.load import load_tokenizer
from engramscope.models.model import Model
from engramscope.provenance import tokenizer_hash
from engramscope.records.bundled import bundled_records, reference_texts
from engramscope.records.bundled_texts import held_out_texts
from engramscope.records.located import located
from engramscope.records.read import Records, read_records
from engramscope.records.record import Record
from engramscope.records.targets import with_drawn_targets
from engramscope.registry import nearest

#: (what, done, total)
Progress = Callable[[str, int, int], None]
BUNDLED = "bundled"
PROTOCOLS = ("counterfact", "zsre")
#: held-out texts for the perplexity
TEXTS = 50


@dataclass(frozen=True)
class Materials:
    """What edits are measured with.

    Attributes:
        records: all usable ones of the file; a study takes the first so many.
        texts: held-out texts for the perplexity before and after; may be empty.
        texts_from: where they came from, in words.
        references: reference texts for RS; None where there are none.
    """

    records: Records
    texts: tuple[str, ...] = ()
    texts_from: str = ""
    references: References | None = None

    @property
    def texts_sha256(self) -> str | None:
        """SHA-256 of the held-out texts; None where there are none."""
        return sha256("\0".join(self.texts).encode("utf-8", "backslashreplace")).hexdigest() if self.texts else None


def materials(
    model: Model, records: str = BUNDLED, *, record_format: str | None = None, texts: str | None = None,
    references: str | None = None, seed: int = 0, progress: Progress | None = None,
) -> Materials:  # fmt: skip
    """Read what edits of a model are measured with.

    Args:
        model: the model.
        records: a file of records, the name of a public home ("counterfact": downloaded once), or "bundled".
        record_format: of the file; None to tell it from its beginning.
        texts: a file of held-out texts, or "bundled"; None for the bundled ones where the model is bundled, else none.
        references: a file of reference texts, or the name of their public home ("attribute_snippets"); None for the
            bundled ones where the records are bundled, else none.
        seed: of drawn targets.
        progress: called with (what, done, total).

    Raises:
        InputError: something cannot be read, or bundled data are asked for a model that does not know them.
        DownloadError: a public home cannot be reached, or does not have the file that was expected.
    """
    read = _records(model, records, record_format, seed, progress)
    names = {record.reference for record in read if record.reference}
    subjects = {record.fact.subject for record in read}
    found: References | None = None
    if references is not None and references != BUNDLED:
        found = read_references(located(references, progress), names, subjects, progress=progress)
    elif read.format == BUNDLED or references == BUNDLED:
        found = References.from_texts(reference_texts(), source="sentences of the bundled corpus")
    return Materials(read, *held_out(model, texts), found)


def held_out(model: Model, texts: str | None = None) -> tuple[tuple[str, ...], str]:
    """Held-out texts for the perplexity, and where they came from, in words.

    Args:
        model: the model.
        texts: a file, or "bundled"; None for the bundled ones where the model is bundled, else none.

    Raises:
        InputError: the file cannot be read, or bundled texts are asked for a model that does not know them.
    """
    chosen = texts if texts is not None else BUNDLED if model.source == "bundled" else None
    if chosen is None:
        return (), ""
    if chosen == BUNDLED:
        _ensure_bundled(model, "--texts FILE")
        return tuple(held_out_texts(TEXTS)), "held-out documents of the bundled corpus"
    return tuple(read_passages(Path(chosen))), Path(chosen).name


def measured_options(protocol: str, *, generation: bool = True, seed: int = 0) -> EvaluateOptions:
    """What is measured under a protocol.

    Args:
        protocol: "counterfact": the nine measures and more; "zsre": accuracy of single tokens, and of whole answers.
        generation: write texts, for GE and RS.
        seed: of the texts.

    Raises:
        UnknownNameError: no such protocol; names the nearest one.
    """
    if protocol not in PROTOCOLS:
        raise UnknownNameError(f"unknown protocol {protocol!r}{nearest(protocol, PROTOCOLS)}")
    if protocol == "zsre":
        return EvaluateOptions(generation=False, plus=False, zsre=True, seed=seed)
    return EvaluateOptions(generation=generation, seed=seed)


def first_records(records: Records, count: int | None) -> tuple[Record, ...]:
    """The first so many records; all where nobody said how many, or where there are no more."""
    return tuple(records)[:count]


def facts_file(
    path: str | Path, record_format: str | None = None, seed: int = 0, progress: Progress | None = None
) -> Sequence[Record]:
    """The records, or facts, of a file or a public home for an edit: every one must be usable.

    Raises:
        InputError: unreadable, or a fact that cannot be edited; every fault.
        DownloadError: the home cannot be reached, or does not have the file that was expected.
    """
    return with_drawn_targets(read_records(located(path, progress), record_format, unusable="refuse"), seed)


def _records(model: Model, name: str, record_format: str | None, seed: int, progress: Progress | None) -> Records:
    if name == BUNDLED:
        _ensure_bundled(model, "--records FILE")
        return bundled_records("test")
    return with_drawn_targets(read_records(located(name, progress), record_format), seed)


def _ensure_bundled(model: Model, instead: str) -> None:
    # an edited or fine-tuned copy of a bundled model is no bundled one any more, but it has its words
    if model.source != "bundled" and tokenizer_hash(model.tokenizer) != tokenizer_hash(load_tokenizer("mini")):
        raise InputError(
            f"The bundled data are about invented people whom only the bundled models know; for {model.name} give data "
            f"of its own ({instead})."
        )

"""Records of a PubMed XML file one by one, in constant memory, from a source that is not trusted.

Expat alone reads the bytes. It opens no file and no address (external DTDs are never loaded), and a document that
declares entities of its own is refused, so that neither an entity bomb nor an external entity exists. Biopython's
parser is not used here, because it fetches a DTD it does not know from the address that the document itself names; the
tests use it as the second parser.
"""

from __future__ import annotations

import html.entities
from collections.abc import Iterable, Iterator
from typing import NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from engramscope.errors import InputError

RECORDS = frozenset({"PubmedArticle", "MedlineCitation", "PubmedBookArticle", "DeleteCitation"})
_ROOTS = frozenset({"PubmedArticleSet", "PubmedBookArticleSet", "MedlineCitationSet", "eFetchResult"}) | RECORDS
_NO_ELEMENTS = expat.errors.codes[expat.errors.XML_ERROR_NO_ELEMENTS]
#: a record deeper or longer than this is no citation
_MOST_DEPTH, _MOST_CHARACTERS = 200, 32_000_000


class XmlError(InputError):
    """The bytes are no PubMed XML; the message says where and why."""


class AnswerError(InputError):
    """The E-utilities answered with an error of theirs in place of records."""


def iterate_records(chunks: Iterable[bytes]) -> Iterator[Element]:
    """The records of a document, each as a tree of its own, as soon as its end tag has come.

    Args:
        chunks: the bytes of the document in pieces of any size.

    Yields:
        Elements named as in `RECORDS`. A `MedlineCitation` inside a `PubmedArticle` is not a record of its own.

    Raises:
        XmlError: not well-formed (a truncated document is not), its root is not of PubMed, or it declares entities.
        AnswerError: the document is an `<ERROR>` of the E-utilities.
    """
    reader = _RecordReader()
    try:
        for chunk in chunks:
            reader.feed(chunk)
            yield from reader.take()
        reader.close()
        yield from reader.take()
    finally:
        reader.release()


class _RecordReader:
    """Expat's handlers: outside of records nothing is kept but the text of an error."""

    def __init__(self) -> None:
        self._ready: list[Element] = []
        self._builder: TreeBuilder | None = None
        self._path: list[str] = []
        self._record_depth = 0
        self._characters = 0
        self._error = ""
        self._parser = parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        parser.EntityDeclHandler = self._entity
        parser.SkippedEntityHandler = self._skipped

    def feed(self, chunk: bytes) -> None:
        self._parse(chunk, last=False)

    def close(self) -> None:
        self._parse(b"", last=True)
        if self._error:
            raise AnswerError(self._error)

    def release(self) -> None:
        """Let go of the parser, which knows this object as well: its buffers would wait for the garbage collector."""
        del self._parser

    def take(self) -> list[Element]:
        ready, self._ready = self._ready, []
        return ready

    def _parse(self, chunk: bytes, *, last: bool) -> None:
        try:
            self._parser.Parse(chunk, last)
        except expat.ExpatError as error:
            if self._error:
                raise AnswerError(self._error) from None
            cut = last and (self._path or error.code == _NO_ELEMENTS)
            why = "it is cut off, or empty" if cut else expat.errors.messages.get(error.code, str(error))
            self._refuse(f"it is no well-formed XML: {why}")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if not self._path and name not in _ROOTS:
            self._refuse(f"its root element is <{name[:80]}>; expected PubmedArticleSet or MedlineCitationSet")
        self._path.append(name)
        if len(self._path) > _MOST_DEPTH:
            self._refuse(f"elements are nested more than {_MOST_DEPTH} deep")
        if self._builder is None and name in RECORDS:
            self._builder, self._record_depth, self._characters = TreeBuilder(), len(self._path), 0
        if self._builder is not None:
            self._grow(len(name) + sum(len(key) + len(value) for key, value in attributes.items()) + 64)
            self._builder.start(name, attributes)

    def _end(self, name: str) -> None:
        if self._builder is not None:
            self._builder.end(name)
            if len(self._path) == self._record_depth:
                self._ready.append(self._builder.close())
                self._builder = None
        self._path.pop()

    def _text(self, data: str) -> None:
        if self._builder is not None:
            self._grow(len(data))
            self._builder.data(data)
        elif self._path and self._path[-1] == "ERROR" and len(self._error) < 500:
            self._error += data[:500]

    def _grow(self, characters: int) -> None:
        self._characters += characters
        if self._characters > _MOST_CHARACTERS:
            self._refuse(f"one record is longer than {_MOST_CHARACTERS:,} characters")

    def _entity(self, name: str, *rest: object) -> None:
        del rest
        self._refuse(
            f"it declares an entity of its own ({name[:80]}); PubMed's files do not, and such files are refused"
        )

    def _skipped(self, name: str, is_parameter: bool) -> None:
        # an entity that only the DTD could explain, which expat would drop without a word: the common names are
        # those of HTML, others stay readable
        if not is_parameter:
            self._text(html.entities.html5.get(f"{name};", f"&{name};"))

    def _refuse(self, why: str) -> NoReturn:
        where = f"line {self._parser.CurrentLineNumber}, column {self._parser.CurrentColumnNumber + 1}"
        raise XmlError(f"{why} ({where})")

"""Where the texts come from that second moments are measured on."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engramscope.errors import InputError
from engramscope.models.model import Model

#: columns that hold a text, the first that is there
COLUMNS: tuple[str, ...] = ("text", "abstract", "Text", "Abstract")
WIKIPEDIA = ("wikimedia/wikipedia", "20231101.en")
_SUFFIXES = (".txt", ".jsonl", ".parquet", ".csv")
_SHUFFLED_OVER = 10_000
#: documents of the bundled corpus that stand for all of it: any change of the generator shows in them
_BUNDLED_SAMPLE = 1000


@dataclass(frozen=True, slots=True)
class Texts:
    """A stream of documents that can be read from its beginning again.

    Attributes:
        name: what it is called in messages.
        identity: changes whenever the documents or their order do.
        open: the documents from the first on.
    """

    name: str
    identity: str
    open: Callable[[], Iterator[str]]


def default_texts(model: Model) -> Texts:
    """The corpus that a bundled model was trained on; Wikipedia for all others."""
    return bundled_texts() if model.source == "bundled" else wikipedia()


def given_texts(texts: Iterable[str], name: str = "the texts given") -> Texts:
    """Texts that are in memory."""
    kept = list(texts)
    return Texts(name, f"sha256:{_digest(kept)}", lambda: iter(kept))


def bundled_texts(seed: int = 0) -> Texts:
    """Documents as the bundled models were trained on, without end.

    Args:
        seed: the same seed gives the same documents.
    """
    from engramscope.bundled.corpus import documents, load_sources, text_of

    def stream() -> Iterator[str]:
        return map(text_of, documents(load_sources(), seed))

    known = _digest(islice(stream(), _BUNDLED_SAMPLE))
    return Texts("the bundled models' training corpus", f"bundled:{seed}:{known}", stream)


def wikipedia(loader: Callable[..., Any] | None = None, seed: int = 0) -> Texts:
    """English Wikipedia of November 2023, streamed and shuffled over a buffer.

    The release used 20200501.en, which is no longer offered.

    Args:
        loader: `datasets.load_dataset`, or something with its signature.
        seed: of the shuffling.
    """
    path, name = WIKIPEDIA

    def stream() -> Iterator[str]:
        try:
            load = loader or _load_dataset()
            rows = load(path, name, split="train", streaming=True).shuffle(seed=seed, buffer_size=_SHUFFLED_OVER)
            for row in rows:
                yield row["text"]
        except OSError as error:
            raise InputError(
                f"Second moments are measured on {path} ({name}) where no texts are given, and it cannot be reached "
                f"({' '.join(str(error).split())[:150]}). Give texts of your own (option 'texts': a file or a folder "
                "of texts), or do without second moments (option 'mom2 = false'), which spreads the edit further."
            ) from None

    return Texts(f"{path} {name}", f"hub:{path}:{name}:{seed}:{_SHUFFLED_OVER}", stream)


def read_texts(path: str | Path) -> Texts:
    """Texts of a file, or of all files of a folder in the order of their names.

    `.txt`: documents stand apart by an empty line. `.jsonl`, `.parquet` and `.csv`: the column "text" or "abstract".
    Of a folder that holds the same table twice (`corpus.parquet` and `corpus.csv`) the Parquet file is read.

    Raises:
        InputError: there is no such file, or none that can be read.
    """
    path = Path(path)
    files = _files(path)
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            digest.update(file.name.encode() + hashlib.file_digest(handle, "sha256").digest())

    def stream() -> Iterator[str]:
        for file in files:
            yield from (text for text in _READERS[file.suffix.lower()](file) if text.strip())

    return Texts(str(path), f"files:{digest.hexdigest()}", stream)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES and file.is_file())
        tables = {file.stem for file in found if file.suffix.lower() == ".parquet"}
        found = [file for file in found if file.suffix.lower() != ".csv" or file.stem not in tables]
    elif path.is_file():
        found = [path] if path.suffix.lower() in _SUFFIXES else []
    else:
        raise InputError(f"There is no file or folder of texts {str(path)!r}.")
    if not found:
        raise InputError(f"{path} holds no texts: expected {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]} files.")
    return found


def _paragraphs(file: Path) -> Iterator[str]:
    lines: list[str] = []
    with file.open(encoding="utf-8", errors="replace") as handle:
        for line in handle:
            if line.strip():
                lines.append(line)
            elif lines:
                yield "".join(lines).strip()
                lines = []
    if lines:
        yield "".join(lines).strip()


def _json_lines(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8", errors="replace") as handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{file}, line {number}: no JSON ({error}).") from None
            if not isinstance(row, dict):
                raise InputError(f"{file}, line {number}: expected an object with a text, not {type(row).__name__}.")
            yield str(row[_column(file, list(row))] or "")


def _parquet(file: Path) -> Iterator[str]:
    try:
        table = pq.ParquetFile(file)
        column = _column(file, table.schema_arrow.names)
        for batch in table.iter_batches(columns=[column], batch_size=256):
            yield from (str(text) for text in batch.column(0).to_pylist() if text is not None)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file} cannot be read as Parquet ({error}).") from None


def _csv(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8", errors="replace", newline="") as handle:
        try:
            rows = csv.DictReader(handle)
            column = _column(file, list(rows.fieldnames or ()))
            for row in rows:
                yield row[column] or ""
        except csv.Error as error:
            raise InputError(f"{file} cannot be read as CSV ({error}).") from None


def _column(file: Path, columns: Sequence[str]) -> str:
    for name in COLUMNS:
        if name in columns:
            return name
    raise InputError(f"{file} has no column 'text' or 'abstract'; it has {', '.join(map(repr, columns)) or 'none'}.")


def _load_dataset() -> Callable[..., Any]:
    from datasets import load_dataset

    return load_dataset


def _digest(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


_READERS: dict[str, Callable[[Path], Iterator[str]]] = {
    ".txt": _paragraphs,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
    ".csv": _csv,
}

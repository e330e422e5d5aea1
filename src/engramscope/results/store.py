"""The results folder: made once, written chunk by chunk, resumed after any death, finished in one stroke.

`DIR/{study.toml, manifest.json, pairs.parquet, effects.parquet, summary.csv, report.html, figures/}`; while a study
runs, one file per finished chunk of work lies in the hidden folder `DIR/.parts`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from engramscope import errors
from engramscope.results import atomic
from engramscope.results.folders import is_scrap
from engramscope.results.lock import FolderLock
from engramscope.results.read import read_manifest
from engramscope.results.schema import EFFECTS, SCHEMA_VERSION, SUMMARY_COLUMNS

_CHUNK_KEY = b"engramscope.chunk"
_CHUNKS_KEY = b"engramscope.chunks"
#: rows that are gathered before they go into one row group of effects.parquet
_ROW_GROUP = 65_536


class ResultsFolder:
    """A results folder on disk. Made by `create` or `open`; a context manager that gives the lock back.

    Attributes:
        path: the folder.
        study_hash: hash of the resolved study that it belongs to.
    """

    def __init__(self, path: Path, study_hash: str, lock: FolderLock | None) -> None:
        self.path, self.study_hash, self._lock = path, study_hash, lock

    @classmethod
    def create(
        cls, path: Path, study_toml_text: str, study_hash: str, study: Mapping[str, Any] | None = None
    ) -> ResultsFolder:
        """Make a new results folder and take its lock.

        Args:
            path: the folder; it may be missing or empty.
            study_toml_text: the study file, kept word for word as `study.toml`.
            study_hash: hash of the resolved study; a later resume must bring the same one.
            study: the resolved study, kept in the manifest, so that a refusal to resume can name what changed.

        Raises:
            ResultsError: the folder holds something else, holds a study already, is being written, or cannot be made.
        """
        path = Path(path)
        _make(path)
        lock = FolderLock(path)
        try:
            _refuse_if_taken(path)
            atomic.remove_temporary_files(path)
            # the manifest comes first: from then on the folder can be told to be ours, whatever happens next
            atomic.write_json(path / "manifest.json", _first_manifest(study_hash, study))
            atomic.write_text(path / "study.toml", study_toml_text)
            _make(path / ".parts")
        except BaseException:
            lock.release()
            raise
        return cls(path, study_hash, lock)

    @classmethod
    def open(cls, path: Path) -> ResultsFolder:
        """Open an existing results folder for reading; `resume` makes it writable.

        Raises:
            ResultsError: no such folder, not ours, a newer schema version, or files are missing.
        """
        path = Path(path)
        manifest = read_manifest(path)
        wanted = ["study.toml"]
        if manifest.get("status") == "complete":
            wanted += ["pairs.parquet", "effects.parquet", "summary.csv"]
        missing = [name for name in wanted if not (path / name).is_file()]
        if missing:
            raise errors.ResultsError(f"The results folder {path} is incomplete: {', '.join(missing)} missing.")
        return cls(path, str(manifest.get("study_hash", "")), None)

    def resume(self, study_hash: str, study: Mapping[str, Any] | None = None) -> ResultsFolder:
        """Take the lock of an interrupted study, so that it can be continued.

        Args:
            study_hash: hash of the resolved study that is to be continued.
            study: the resolved study, to name the keys that differ.

        Raises:
            ResultsError: the study is not the folder's (says what differs), or the folder is being written.
        """
        if study_hash != self.study_hash:
            raise errors.ResultsError(_refusal(self.path, study))
        if self._lock is None:
            self._lock = FolderLock(self.path)
            for folder in (self.path, self.path / ".parts", self.path / "figures"):
                atomic.remove_temporary_files(folder)
        return self

    def append(self, chunk_id: str, table: pa.Table) -> None:
        """Keep the rows of one finished chunk of work; a chunk that is there already is replaced.

        Args:
            chunk_id: any text, unique within the study, the same whenever the study is run.
            table: rows of `effects.parquet`; the columns of `EFFECTS` in any order.

        Raises:
            ResultsError: the disk is full, no permission.
            ValueError: columns are missing or of the wrong type (an error of the caller).
        """
        self._must_be_locked()
        rows = _conforming(table).replace_schema_metadata({_CHUNK_KEY: chunk_id.encode("utf-8")})
        _make(self.path / ".parts")
        atomic.write_table(self._part(chunk_id), rows)

    def done(self) -> set[str]:
        """Ids of the chunks that are complete and readable to the last byte.

        A part that cannot be read is left out (and, while the lock is held, removed), so that it is computed again.
        """
        found = set(_merged_chunks(self.path / "effects.parquet"))
        for part in sorted((self.path / ".parts").glob("*.parquet")):
            try:
                chunk_id, _ = _read_part(part)
                if self._part(chunk_id) != part:
                    raise ValueError(f"{part.name} holds the rows of another chunk")
            except (OSError, ValueError, pa.ArrowException):
                if self._lock is not None:
                    with suppress(OSError):
                        part.unlink()
                continue
            found.add(chunk_id)
        return found

    def finalise(self, chunk_ids: Sequence[str]) -> None:
        """Merge the chunks, in this order, into `effects.parquet`, and remove the parts. Harmless when repeated.

        The table depends on the chunks and their order only, not on when or in how many runs they were computed.

        Raises:
            ResultsError: a chunk is damaged or missing, or the disk refuses.
            ValueError: an id is given twice (an error of the caller).
        """
        self._must_be_locked()
        ids = list(chunk_ids)
        if len(set(ids)) < len(ids):
            raise ValueError("a chunk id is given twice")
        target = self.path / "effects.parquet"
        if not (target.is_file() and _merged_chunks(target) == ids):
            self._merge(target, ids)
        shutil.rmtree(self.path / ".parts", ignore_errors=True)

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write `DIR/name` as JSON, in full or not at all.

        Raises:
            ResultsError: the disk refuses.
        """
        self._must_be_locked()
        atomic.write_json(self.path / name, value)

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write `manifest.json`; the schema version and the study hash are those of the folder.

        Raises:
            ResultsError: the disk refuses.
        """
        self.write_json("manifest.json", {**manifest, "schema": SCHEMA_VERSION, "study_hash": self.study_hash})

    def write_text(self, name: str, text: str) -> None:
        """Write `DIR/name` as UTF-8 text, in full or not at all.

        Raises:
            ResultsError: the disk refuses.
        """
        self._must_be_locked()
        atomic.write_text(self.path / name, text)

    def write_table(self, name: str, table: pa.Table | pd.DataFrame) -> None:
        """Write `DIR/name` as Parquet, in full or not at all.

        Raises:
            ResultsError: the disk refuses.
        """
        self._must_be_locked()
        rows = pa.Table.from_pandas(table, preserve_index=False) if isinstance(table, pd.DataFrame) else table
        atomic.write_table(self.path / name, rows)

    def write_summary(self, summary: pd.DataFrame) -> None:
        """Write `summary.csv` with the columns of `SUMMARY_COLUMNS`, in that order; numbers keep every digit.

        Raises:
            ResultsError: the disk refuses.
            ValueError: a column is missing or unknown (an error of the caller).
        """
        self._must_be_locked()
        if set(summary.columns) != set(SUMMARY_COLUMNS):
            odd = sorted(set(summary.columns) ^ set(SUMMARY_COLUMNS))
            raise ValueError(f"summary.csv: columns missing or unknown: {', '.join(odd)}")
        text = summary.loc[:, list(SUMMARY_COLUMNS)].to_csv(index=False, lineterminator="\n")
        atomic.write_text(self.path / "summary.csv", text)

    def close(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> ResultsFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"ResultsFolder({str(self.path)!r}, {'writable' if self._lock else 'read only'})"

    def _part(self, chunk_id: str) -> Path:
        # the id is any text, a file name is not: the name is a hash, the id itself stands in the file
        return self.path / ".parts" / f"{hashlib.sha256(chunk_id.encode('utf-8')).hexdigest()[:40]}.parquet"

    def _must_be_locked(self) -> None:
        if self._lock is None:
            raise errors.ResultsError(
                f"The results folder {self.path} is open for reading only; resume the study to write."
            )

    def _merge(self, target: Path, ids: list[str]) -> None:
        metadata = {_CHUNKS_KEY: json.dumps(ids).encode("utf-8")}
        with atomic.atomic_file(target) as handle:
            waiting: list[pa.Table] = []
            with pq.ParquetWriter(handle, EFFECTS.with_metadata(metadata), write_page_checksum=True) as writer:
                for chunk_id in ids:
                    waiting.append(self._chunk(chunk_id))
                    if sum(table.num_rows for table in waiting) >= _ROW_GROUP:
                        writer.write_table(_joined(waiting))
                        waiting = []
                if waiting:
                    writer.write_table(_joined(waiting))

    def _chunk(self, chunk_id: str) -> pa.Table:
        try:
            found, table = _read_part(self._part(chunk_id))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise errors.ResultsError(
                f"The chunk {chunk_id!r} of {self.path} is missing or damaged ({type(error).__name__}); "
                "run the study again with --resume to compute it."
            ) from None
        if found != chunk_id:
            raise errors.ResultsError(f"The chunk {chunk_id!r} of {self.path} holds the rows of {found!r}.")
        return table


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two resolved studies, one "key: old -> new" per changed key, in the order of the keys."""
    out: list[str] = []
    for key in dict.fromkeys([*old, *new]):
        before, after, name = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            out += differences(before, after, f"{name}.")
        elif isinstance(before, list | tuple) and isinstance(after, list | tuple) and _tables(before, after):
            out += differences(_by_name(before), _by_name(after), f"{name}.")
        elif atomic.jsonable(before) != atomic.jsonable(after):
            out.append(f"{name}: {_short(before)} -> {_short(after)}")
    return out


def _tables(*values: Sequence[Any]) -> bool:
    return all(isinstance(item, Mapping) for value in values for item in value)


def _by_name(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {str(table.get("name", index)): table for index, table in enumerate(tables)}


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(atomic.jsonable(value), ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _refusal(path: Path, study: Mapping[str, Any] | None) -> list[str]:
    first = f"{path} belongs to another study, so it cannot be resumed with this one. Choose another folder."
    if study is None:
        return [first]
    stored = read_manifest(path).get("study")
    if not isinstance(stored, Mapping):
        with suppress(OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
            stored = tomllib.loads((path / "study.toml").read_text(encoding="utf-8"))
    changed = differences(stored, study) if isinstance(stored, Mapping) else []
    return [first, *(f"Changed: {item}." for item in changed[:20])]


def _first_manifest(study_hash: str, study: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "schema": SCHEMA_VERSION,
        "status": "running",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "study": study,
        "study_hash": study_hash,
    }


def _make(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise errors.ResultsError(f"{path} is a file, not a folder; choose another name for the results.") from None
    except OSError as error:
        raise errors.ResultsError(atomic.disk_sentence(path, error)) from None


def _refuse_if_taken(path: Path) -> None:
    names = {item.name for item in path.iterdir() if not is_scrap(item.name)}
    if not names:
        return
    if "manifest.json" not in names:
        shown = ", ".join(sorted(names)[:4]) + (" …" if len(names) > 4 else "")
        raise errors.ResultsError(
            f"The folder {path} is not empty and holds no study of ours ({shown}); choose an empty or a new folder."
        )
    manifest = read_manifest(path)
    # killed between the first manifest and the first row: there is nothing to lose
    if names <= {"manifest.json", "study.toml"} and manifest.get("status") == "running":
        return
    state = "finished" if manifest.get("status") == "complete" else "interrupted"
    raise errors.ResultsError(
        f"The folder {path} holds the {state} study {_name_of(manifest)}; "
        "continue it with --resume, or choose another folder."
    )


def _name_of(manifest: Mapping[str, Any]) -> str:
    study = manifest.get("study")
    return repr(study.get("name", "without a name")) if isinstance(study, Mapping) else "of this name"


def _conforming(table: pa.Table) -> pa.Table:
    if set(table.column_names) != set(EFFECTS.names) or len(table.column_names) != len(EFFECTS.names):
        odd = sorted(set(table.column_names) ^ set(EFFECTS.names))
        raise ValueError(f"effects: columns missing, unknown or doubled: {', '.join(odd)}")
    return table.select(EFFECTS.names).cast(EFFECTS)


def _read_part(path: Path) -> tuple[str, pa.Table]:
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        metadata = file.schema_arrow.metadata or {}
        table = file.read()
    if _CHUNK_KEY not in metadata or table.schema.remove_metadata() != EFFECTS:
        raise ValueError(f"{path.name} is no part of ours")
    return metadata[_CHUNK_KEY].decode("utf-8"), table


def _merged_chunks(path: Path) -> list[str]:
    if not path.is_file():
        return []
    try:
        with pq.ParquetFile(path) as file:
            metadata = file.schema_arrow.metadata or {}
        return list(json.loads(metadata.get(_CHUNKS_KEY, b"[]")))
    except (OSError, ValueError, pa.ArrowException):
        return []


def _joined(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables([table.replace_schema_metadata(None) for table in tables]).combine_chunks()

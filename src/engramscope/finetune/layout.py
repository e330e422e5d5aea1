"""What lies where in the folder of a fine-tuning, and what its training process is told."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engramscope.errors import ResultsError
from engramscope.finetune.settings import Settings
from engramscope.results.atomic import write_json, write_table

#: in the environment of a process that somebody started and supervises
SUPERVISED = "ENGRAMSCOPE_SUPERVISED"
#: written into a checkpoint when everything else of it is on the disk
COMPLETE = "history.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Layout:
    """The files of one fine-tuning.

    Attributes:
        root: the folder that the user named. Model, tokenizer, `training.json`, `history.csv`, `steps.csv`,
            `split.parquet`, `report.html` and `figures/` are left in it; `work/` and `checkpoints/` go when it is done.
    """

    root: Path

    @property
    def work(self) -> Path:
        """What the processes tell each other."""
        return self.root / "work"

    @property
    def checkpoints(self) -> Path:
        """Of the Trainer."""
        return self.root / "checkpoints"

    @property
    def manifest(self) -> Path:
        """What was asked for, computed and found."""
        return self.root / "training.json"

    @property
    def job(self) -> Path:
        """What the training process is to do."""
        return self.work / "job.json"

    @property
    def chunks(self) -> Path:
        """The tokens of both sides."""
        return self.work / "chunks.parquet"

    @property
    def events(self) -> Path:
        """What the training process says, a JSON object a line."""
        return self.work / "events.jsonl"

    @property
    def log(self) -> Path:
        """What its libraries print."""
        return self.work / "worker.log"

    @property
    def stop(self) -> Path:
        """Exists where the training process is asked to save and end."""
        return self.work / "stop"

    @property
    def base(self) -> Path:
        """Fingerprints of the model that training began from."""
        return self.work / "base.json"

    @property
    def result(self) -> Path:
        """What the training process found; exists where it is done."""
        return self.work / "result.json"


@dataclass(frozen=True)
class Job:
    """What the training process is told.

    Attributes:
        settings: all of them.
        model: a bundled name, a hub id, or the full path of a folder.
        chunk: tokens of a full chunk.
        pad: the id that fills batches up.
        device: "cpu" or "cuda".
        precision: the one that is used.
    """

    settings: Settings
    model: str
    chunk: int
    pad: int
    device: str
    precision: str

    def write(self, path: Path) -> None:
        """Write it as JSON.

        Raises:
            ResultsError: the disk refuses.
        """
        write_json(path, {**asdict(self), "settings": self.settings.model_dump(mode="json")})

    @staticmethod
    def read(path: Path) -> Job:
        """What `write` has written.

        Raises:
            ResultsError: there is no such file.
        """
        try:
            found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except OSError:
            raise ResultsError(
                f"{path} is missing: `engramscope finetune … --prepare` makes the folder that is trained in."
            ) from None
        return Job(**{**found, "settings": Settings.model_validate(found["settings"])})


def write_chunks(path: Path, train: list[list[int]], validation: list[list[int]]) -> None:
    """Write the chunks of both sides, in order.

    Raises:
        ResultsError: the disk refuses.
    """
    held_out = [False] * len(train) + [True] * len(validation)
    ids = pa.array([*train, *validation], type=pa.large_list(pa.int32()))
    write_table(path, pa.table({"held_out": held_out, "ids": ids}))


def read_chunks(path: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The chunks for training and for validation."""
    table = pq.read_table(path)
    column = table.column("ids").combine_chunks()
    values, offsets = column.values.to_numpy(), column.offsets.to_numpy()
    chunks = [values[start:end] for start, end in pairwise(offsets)]
    sides = table.column("held_out").to_pylist()
    return (
        [chunk for chunk, held_out in zip(chunks, sides, strict=True) if not held_out],
        [chunk for chunk, held_out in zip(chunks, sides, strict=True) if held_out],
    )


def checkpoints(folder: Path) -> Iterator[tuple[int, Path]]:
    """Every checkpoint of a folder, complete or not, with its step, in order."""
    found = [(int(match.group(1)), path) for path in folder.glob("checkpoint-*") if (match := _named(path))]
    yield from sorted(found)


def complete_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints of which everything was written, with their steps, in order."""
    return [(step, path) for step, path in checkpoints(folder) if (path / COMPLETE).is_file()]


def _named(path: Path) -> re.Match[str] | None:
    return _CHECKPOINT.fullmatch(path.name)


def sync_files(folder: Path) -> None:
    """Force every file of a folder to the disk, so that a power cut cannot take it."""
    for path in folder.iterdir():
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from results_rows import chunk

from engramscope.errors import ResultsError
from engramscope.results import atomic


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_refusing_disk_is_one_sentence_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: str
) -> None:
    target = tmp_path / "manifest.json"
    atomic.write_json(target, {"old": 1})
    before = target.read_bytes()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(ResultsError) as caught:
        atomic.write_json(target, {"new": 2})
    assert len(caught.value.faults) == 1
    assert "manifest.json" in caught.value.faults[0]
    assert ("disk is full" in str(caught.value)) == (code == errno.ENOSPC)
    assert ("permission" in str(caught.value)) == (code == errno.EACCES)
    assert target.read_bytes() == before
    assert _names(tmp_path) == {"manifest.json"}


class _FullDisk:
    """A file that takes `room` bytes and then says that the disk is full."""

    def __init__(self, handle: object, room: int) -> None:
        self._handle, self._room = handle, room

    def write(self, data: bytes) -> int:
        self._room -= len(data)
        if self._room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._handle.write(data)  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> object:
        return getattr(self._handle, name)

    def __enter__(self) -> _FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("room", [0, 4, 700])
def test_the_disk_fills_in_the_middle_of_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    target = tmp_path / "effects.parquet"
    really_open = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode="r", *a, **k: _FullDisk(really_open(self, mode, *a, **k), room))
    with pytest.raises(ResultsError, match="disk is full"):
        atomic.write_table(target, chunk(0))
    monkeypatch.undo()
    assert _names(tmp_path) == set()


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_real_limit_of_the_file_size(tmp_path: Path) -> None:
    script = (
        "import resource, sys, pathlib\n"
        "from engramscope.errors import ResultsError\n"
        "from engramscope.results import atomic\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    atomic.write_text(pathlib.Path(sys.argv[1]), 'x' * 1_000_000)\n"
        "except ResultsError as error:\n"
        "    sys.exit(42 if 'could not be written' in str(error) else 1)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "big.txt")], check=False, timeout=60)
    assert done.returncode == 42
    assert _names(tmp_path) == set()


def test_an_interruption_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupted() -> None:
        with atomic.atomic_file(tmp_path / "a") as handle:
            handle.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert _names(tmp_path) == set()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="could not be written"):
        atomic.write_text(tmp_path / "none" / "a.txt", "text")


def test_json_holds_no_nan_and_no_numpy(tmp_path: Path) -> None:
    value = {"a": float("nan"), "b": np.float32(0.5), "c": (1, np.int64(2)), "d": np.array([1.5, np.inf]), "é": {"x"}}
    atomic.write_json(tmp_path / "m.json", value)
    text = (tmp_path / "m.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"a": None, "b": 0.5, "c": [1, 2], "d": [1.5, None], "é": ["x"]}
    with pytest.raises(TypeError):
        atomic.write_json(tmp_path / "n.json", {"a": object()})
    assert _names(tmp_path) == {"m.json"}


def test_text_is_kept_to_the_byte(tmp_path: Path) -> None:
    text = "a\r\nb\n\ttab \u00e9 \U0001f9e0"
    atomic.write_text(tmp_path / "t", text)
    assert (tmp_path / "t").read_bytes() == text.encode("utf-8")


def test_tables_round_trip(tmp_path: Path) -> None:
    atomic.write_table(tmp_path / "t.parquet", chunk(2))
    assert pq.read_table(tmp_path / "t.parquet").equals(chunk(2))

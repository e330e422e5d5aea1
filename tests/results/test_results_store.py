from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from results_rows import chunk, summary

from engramscope.errors import ResultsError
from engramscope.results import ResultsFolder, differences, read_effects, read_manifest, read_summary
from engramscope.results.schema import EFFECTS, SCHEMA_VERSION

TOML = 'schema = 1\nname = "made up"\n'
IDS = [f"heads/{layer}" for layer in range(6)]


def _fill(folder: ResultsFolder, layers: list[int]) -> None:
    for layer in layers:
        folder.append(IDS[layer], chunk(layer))


def _undisturbed(path: Path) -> bytes:
    with ResultsFolder.create(path, TOML, "h") as folder:
        _fill(folder, [0, 1, 2, 3, 4, 5])
        folder.finalise(IDS)
    return (path / "effects.parquet").read_bytes()


def test_a_folder_from_beginning_to_end(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out"
    _undisturbed(path)
    expected = pa.concat_tables([chunk(layer) for layer in range(6)]).to_pylist()
    found = pa.Table.from_pandas(read_effects(path), schema=EFFECTS, preserve_index=False).to_pylist()
    assert found == expected
    assert (path / "study.toml").read_text(encoding="utf-8") == TOML
    assert {item.name for item in path.iterdir()} == {"study.toml", "manifest.json", "effects.parquet"}
    assert read_manifest(path)["schema"] == SCHEMA_VERSION


@pytest.mark.parametrize("order", [[5, 0, 3], [1], [], [2, 1, 0, 5, 4, 3]])
def test_resumed_tables_are_equal_to_the_byte(tmp_path: Path, order: list[int]) -> None:
    wanted = _undisturbed(tmp_path / "a")
    path = tmp_path / "b"
    with ResultsFolder.create(path, TOML, "h") as folder:
        _fill(folder, order)
    with ResultsFolder.open(path).resume("h") as folder:
        assert folder.done() == {IDS[layer] for layer in order}
        _fill(folder, [layer for layer in reversed(range(6)) if layer not in order])
        folder.finalise(IDS)
    assert (path / "effects.parquet").read_bytes() == wanted


def test_a_merge_can_be_repeated_and_still_knows_its_chunks(tmp_path: Path) -> None:
    wanted = _undisturbed(tmp_path / "a")
    with ResultsFolder.open(tmp_path / "a").resume("h") as folder:
        assert folder.done() == set(IDS)
        folder.finalise(IDS)
    assert (tmp_path / "a" / "effects.parquet").read_bytes() == wanted


def test_killed_between_the_merge_and_the_removal_of_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = _undisturbed(tmp_path / "a")
    with ResultsFolder.create(tmp_path / "b", TOML, "h") as folder:
        _fill(folder, [0, 1, 2, 3, 4, 5])
        monkeypatch.setattr("engramscope.results.store.shutil.rmtree", lambda *_, **__: None)
        folder.finalise(IDS)
        monkeypatch.undo()
    with ResultsFolder.open(tmp_path / "b").resume("h") as folder:
        assert folder.done() == set(IDS)
        folder.finalise(IDS)
    assert (tmp_path / "b" / "effects.parquet").read_bytes() == wanted
    assert not (tmp_path / "b" / ".parts").exists()


def test_the_disk_fills_during_the_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = _undisturbed(tmp_path / "a")
    with ResultsFolder.create(tmp_path / "b", TOML, "h") as folder:
        _fill(folder, [0, 1, 2, 3, 4, 5])

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(ResultsError, match="disk is full"):
            folder.finalise(IDS)
        monkeypatch.undo()
        assert not (tmp_path / "b" / "effects.parquet").exists()
        assert folder.done() == set(IDS)
        folder.finalise(IDS)
    assert (tmp_path / "b" / "effects.parquet").read_bytes() == wanted


def _parts(path: Path) -> list[Path]:
    return sorted((path / ".parts").glob("*.parquet"))


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "text", "other table"])
def test_a_damaged_part_is_computed_again(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "b"
    wanted = _undisturbed(tmp_path / "a")
    with ResultsFolder.create(path, TOML, "h") as folder:
        _fill(folder, [0, 1, 2, 3, 4, 5])
        with pytest.raises(ResultsError, match="missing or damaged"):
            folder.finalise([*IDS, "heads/6"])
    part = _parts(path)[2]
    data = part.read_bytes()
    if damage == "other table":
        pa.parquet.write_table(pa.table({"x": [1]}), part)
    else:
        middle = data[: len(data) // 4] + bytes([data[len(data) // 4] ^ 255]) + data[len(data) // 4 + 1 :]
        part.write_bytes({"truncate": data[:-9], "flip": middle, "empty": b"", "text": b"no parquet"}[damage])
    with ResultsFolder.open(path).resume("h") as folder:
        done = folder.done()
        assert len(done) == 5
        assert len(_parts(path)) == 5
        _fill(folder, [layer for layer in range(6) if IDS[layer] not in done])
        folder.finalise(IDS)
    assert (path / "effects.parquet").read_bytes() == wanted


def test_every_single_flipped_byte_of_a_part_is_noticed_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "b"
    with ResultsFolder.create(path, TOML, "h") as folder:
        _fill(folder, [0])
        part = _parts(path)[0]
        data = part.read_bytes()
        wrong = 0
        for place in range(0, len(data), max(1, len(data) // 150)):
            part.write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
            if folder.done() == {IDS[0]}:
                folder.finalise([IDS[0]])
                wrong += read_effects(path)["patched"].tolist() != chunk(0)["patched"].to_pylist()
                (path / "effects.parquet").unlink()
                (path / ".parts").mkdir()
        assert wrong == 0


WRITER = """
import sys, time
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from results_rows import chunk
from engramscope.results import ResultsFolder
path = Path(sys.argv[1])
ids = [f"heads/{layer}" for layer in range(6)]
folder = ResultsFolder.open(path).resume("h") if (path / "manifest.json").exists() else ResultsFolder.create(
    path, 'schema = 1\\nname = "made up"\\n', "h")
done = folder.done()
for layer in range(6):
    if ids[layer] not in done:
        folder.append(ids[layer], chunk(layer))
        print(layer, flush=True)
        time.sleep(0.05)
folder.finalise(ids)
folder.close()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_killed_again_and_again_it_ends_with_the_same_table(tmp_path: Path) -> None:
    wanted = _undisturbed(tmp_path / "a")
    path = tmp_path / "b"
    command = [sys.executable, "-c", WRITER, str(path), str(Path(__file__).parent)]
    kills = 0
    for _ in range(8):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.readline()
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        kills += process.wait(timeout=60) == -signal.SIGKILL
        process.stdout.close()
        if (path / "effects.parquet").exists():
            break
    assert kills >= 1
    subprocess.run(command, check=True, timeout=60, stdout=subprocess.DEVNULL)
    assert (path / "effects.parquet").read_bytes() == wanted
    assert {item.name for item in path.iterdir()} == {"study.toml", "manifest.json", "effects.parquet"}


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "out"
    folder = ResultsFolder.create(path, TOML, "h")
    with pytest.raises(ResultsError, match=f"process {os.getpid()}"):
        ResultsFolder.open(path).resume("h")
    with pytest.raises(ResultsError, match="being written"):
        ResultsFolder.create(path, TOML, "h")
    folder.close()
    folder.close()
    ResultsFolder.open(path).resume("h").close()
    assert not (path / ".lock").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_the_lock_of_a_living_process_holds_and_that_of_a_dead_one_does_not(tmp_path: Path) -> None:
    path = tmp_path / "out"
    script = (
        "import sys, time; from pathlib import Path; from engramscope.results import ResultsFolder\n"
        "f = ResultsFolder.create(Path(sys.argv[1]), '', 'h'); print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "ready"
    with pytest.raises(ResultsError, match=str(process.pid)):
        ResultsFolder.open(path).resume("h")
    process.kill()
    process.wait(timeout=30)
    process.stdout.close()
    assert (path / ".lock").exists()
    ResultsFolder.open(path).resume("h").close()


def test_what_create_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResultsError, match="is a file"):
        ResultsFolder.create(tmp_path / "file", TOML, "h")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ResultsError, match=r"thesis\.tex"):
        ResultsFolder.create(tmp_path / "mine", TOML, "h")
    assert {item.name for item in (tmp_path / "mine").iterdir()} == {"thesis.tex"}
    with ResultsFolder.create(tmp_path / "ours", TOML, "h", {"name": "made up"}) as folder:
        _fill(folder, [0])
    with pytest.raises(ResultsError, match=r"interrupted study 'made up'.*--resume"):
        ResultsFolder.create(tmp_path / "ours", TOML, "h")
    _undisturbed(tmp_path / "done")
    with pytest.raises(ResultsError, match="--resume"):
        ResultsFolder.create(tmp_path / "done", TOML, "h")


def test_killed_before_the_first_row_begins_anew(tmp_path: Path) -> None:
    ResultsFolder.create(tmp_path / "out", TOML, "h").close()
    (tmp_path / "out" / ".parts").rmdir()
    (tmp_path / "out" / ".engramscope-manifest.json-0123.tmp").write_text("half")
    with ResultsFolder.create(tmp_path / "out", TOML, "other") as folder:
        assert folder.done() == set()
    assert read_manifest(tmp_path / "out")["study_hash"] == "other"
    assert not list((tmp_path / "out").glob(".engramscope-*"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no manifest.json"),
        ("{", "cannot be read"),
        ("[1]", "another kind"),
        ('{"schema": 1}', "another kind"),
        (f'{{"schema": {SCHEMA_VERSION + 1}, "study_hash": "h"}}', "update Engramscope"),
        ('{"schema": 1, "study_hash": "h"}', r"study\.toml missing"),
    ],
)
def test_what_open_refuses(tmp_path: Path, content: str | None, expected: str) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ResultsError, match=expected):
        ResultsFolder.open(tmp_path)
    with pytest.raises(ResultsError, match="no results folder"):
        ResultsFolder.open(tmp_path / "missing")


def test_a_complete_study_without_its_tables_is_refused(tmp_path: Path) -> None:
    with ResultsFolder.create(tmp_path / "out", TOML, "h") as folder:
        folder.write_manifest({"status": "complete"})
    with pytest.raises(ResultsError, match=r"pairs\.parquet, effects\.parquet, summary\.csv missing"):
        ResultsFolder.open(tmp_path / "out")


def test_a_changed_study_refuses_and_says_what_changed(tmp_path: Path) -> None:
    old = {"name": "a", "stats": {"resamples": 100}, "sweep": [{"name": "heads", "site": "z"}], "seed": 0}
    new = {"name": "a", "stats": {"resamples": 200}, "sweep": [{"name": "heads", "site": "q"}], "seed": 0, "x": [1]}
    ResultsFolder.create(tmp_path / "out", TOML, "h", old).close()
    with pytest.raises(ResultsError) as caught:
        ResultsFolder.open(tmp_path / "out").resume("h2", new)
    assert caught.value.faults[1:] == (
        "Changed: stats.resamples: 100 -> 200.",
        'Changed: sweep.heads.site: "z" -> "q".',
        "Changed: x: nothing -> [1].",
    )
    with pytest.raises(ResultsError, match="another study"):
        ResultsFolder.open(tmp_path / "out").resume("h2")
    assert differences(old, old) == []
    assert differences({"a": (1, 2)}, {"a": [1, 2]}) == []


def test_without_a_stored_study_the_study_file_says_what_changed(tmp_path: Path) -> None:
    ResultsFolder.create(tmp_path / "out", TOML, "h").close()
    with pytest.raises(ResultsError, match='Changed: name: "made up" -> "b"'):
        ResultsFolder.open(tmp_path / "out").resume("h2", {"schema": 1, "name": "b"})


def test_reading_only_means_reading_only(tmp_path: Path) -> None:
    ResultsFolder.create(tmp_path / "out", TOML, "h").close()
    folder = ResultsFolder.open(tmp_path / "out")
    for write in (
        lambda: folder.append("a", chunk(0)),
        lambda: folder.finalise([]),
        lambda: folder.write_manifest({}),
        lambda: folder.write_text("a", ""),
        lambda: folder.write_table("a", chunk(0)),
        lambda: folder.write_summary(summary()),
    ):
        with pytest.raises(ResultsError, match="reading only"):
            write()


def test_chunk_ids_are_any_text_and_columns_are_checked(tmp_path: Path) -> None:
    ids = ["../../escape", "a/b", "A/B", "ü" * 400, ""]
    with ResultsFolder.create(tmp_path / "out", TOML, "h") as folder:
        for layer, chunk_id in enumerate(ids):
            folder.append(chunk_id, chunk(layer).select(list(reversed(EFFECTS.names))))
        assert folder.done() == set(ids)
        with pytest.raises(ValueError, match="patched"):
            folder.append("x", chunk(0).drop_columns(["patched"]))
        with pytest.raises(ValueError, match="twice"):
            folder.finalise(["", ""])
        folder.append("a/b", chunk(9))
        folder.finalise(ids)
    assert read_effects(tmp_path / "out")["layer"].unique().tolist() == [0, 9, 2, 3, 4]
    assert {item.name for item in tmp_path.iterdir()} == {"out"}


def test_an_empty_chunk_and_no_chunk(tmp_path: Path) -> None:
    with ResultsFolder.create(tmp_path / "out", TOML, "h") as folder:
        folder.append("empty", EFFECTS.empty_table())
        folder.finalise(["empty"])
    assert len(read_effects(tmp_path / "out")) == 0
    with ResultsFolder.create(tmp_path / "none", TOML, "h") as folder:
        folder.finalise([])
    assert len(read_effects(tmp_path / "none")) == 0


def test_a_summary_keeps_every_digit_and_every_name(tmp_path: Path) -> None:
    table = pd.concat([summary(sweep=name) for name in ("NA", "null", "nan", "None", 'a,"b"\n', "True")])
    with ResultsFolder.create(tmp_path / "out", TOML, "h") as folder:
        folder.write_summary(table)
        with pytest.raises(ValueError, match="detected"):
            folder.write_summary(table.drop(columns="detected"))
    found = read_summary(tmp_path / "out")
    assert found["sweep"].tolist() == ["NA", "null", "nan", "None", 'a,"b"\n', "True"]
    assert found["estimate"].tolist() == [0.1 + 0.2] * 6
    assert found["low"].tolist() == [1e-17] * 6
    assert found["high"].tolist() == [1 / 3] * 6
    assert found["p"].isna().all()
    assert found["position"].isna().all()
    assert found["layer"].tolist() == [3] * 6
    assert found["layer"].dtype == "Int64"
    assert found["cut"].tolist() == [False] * 6
    assert found["note"].tolist() == [""] * 6


def test_integers_stay_integers_and_null_stays_null(tmp_path: Path) -> None:
    with ResultsFolder.create(tmp_path / "out", TOML, "h") as folder:
        folder.append("a", chunk(0))
        folder.finalise(["a"])
    found = read_effects(tmp_path / "out", ["layer", "position", "patched"])
    assert found.dtypes.astype(str).tolist() == ["Int64", "Int64", "float64"]
    assert found["position"].isna().all()
    with pytest.raises(ResultsError, match=r"no summary\.csv"):
        read_summary(tmp_path / "out")


def test_a_damaged_table_is_a_sentence(tmp_path: Path) -> None:
    with ResultsFolder.create(tmp_path / "out", TOML, "h") as folder:
        folder.append("a", chunk(0))
        folder.finalise(["a"])
    (tmp_path / "out" / "effects.parquet").write_bytes(b"PAR1 no PAR1")
    with pytest.raises(ResultsError, match="damaged"):
        read_effects(tmp_path / "out")
    (tmp_path / "out" / "summary.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ResultsError, match="lacks the columns"):
        read_summary(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["status"] == "running"

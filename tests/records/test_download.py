"""Downloads from a server on this machine that does everything that servers do."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from engramscope.editing.inputs import facts_file
from engramscope.errors import ResultsError, UnknownNameError
from engramscope.records.cache import cache_folder
from engramscope.records.download import TRIES, DownloadError, download, sha256_of
from engramscope.records.homes import HOMES, Home, home, recognised
from engramscope.records.located import located
from engramscope.results.lock import FolderLock
from tests.pairs.tiny_tokenizers import shared

CONTENT = np.random.default_rng(0).bytes(700_001)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """Its file, its faults (one for each request, then none), and what it was asked."""

    content: bytes = CONTENT
    etag: str = '"one"'
    ranges: bool = True
    faults: list[str] = field(default_factory=list)
    asked: list[dict[str, str]] = field(default_factory=list)
    url: str = ""


def _answer(server: Server, request: BaseHTTPRequestHandler) -> None:
    server.asked.append({key: value for key, value in request.headers.items() if "Range" in key})
    fault = server.faults.pop(0) if server.faults else ""
    if fault.isdecimal():
        request.send_error(int(fault))
        return
    wanted, start = request.headers.get("Range"), 0
    fresh = request.headers.get("If-Range") in (None, server.etag)
    if server.ranges and wanted and fresh:
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(server.content):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(server.content)}")
            request.end_headers()
            return
    body = server.content[start:]
    request.send_response(206 if start else 200)
    if start:
        shown = start + 1 if fault == "other part" else start
        total = len(server.content)
        request.send_header("Content-Range", f"bytes {shown}-{total - 1}/{total}")
    if fault != "no length":
        request.send_header("Content-Length", str(len(body)))
    if server.etag:
        request.send_header("ETag", server.etag)
    request.end_headers()
    request.wfile.write(body[: len(body) // 2] if fault == "cut" else body)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _answer(state, self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{listening.server_address[1]}/data.bin"
    yield state
    listening.shutdown()
    listening.server_close()
    thread.join()


def of(server: Server, *, known: bool = True) -> Home:
    if known:
        return Home("data", "data.bin", server.url, "test data", len(CONTENT), DIGEST)
    return Home("data", "data.bin", server.url, "test data")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Waits(list[float]):
    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def test_downloaded_checked_and_found_in_the_cache_the_next_time(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    done = download(of(server), tmp_path / "new", progress=lambda *step: seen.append(step))
    assert done.path.read_bytes() == CONTENT
    assert (done.sha256, done.fresh, done.checked) == (DIGEST, True, True)
    assert done.described().endswith("(as expected).")
    assert names(tmp_path / "new") == ["data.bin"]
    size = len(CONTENT)
    assert ("downloading data.bin", size, size) in seen
    assert seen[-1] == ("checking data.bin", size, size)
    again = download(of(server), tmp_path / "new")
    assert (again.path, again.sha256, again.fresh) == (done.path, DIGEST, False)
    assert len(server.asked) == 1


@pytest.mark.parametrize("known", [True, False])
def test_a_body_that_breaks_off_is_resumed(server: Server, tmp_path: Path, known: bool) -> None:
    server.faults = ["cut", "503", "cut"]
    waits = Waits()
    assert download(of(server, known=known), tmp_path, sleep=waits).path.read_bytes() == CONTENT
    half = len(CONTENT) // 2
    rest = half + (len(CONTENT) - half) // 2
    assert [one.get("Range") for one in server.asked] == [None, f"bytes={half}-", f"bytes={half}-", f"bytes={rest}-"]
    assert {one.get("If-Range") for one in server.asked[1:]} == {server.etag}
    assert waits == [1, 2, 4]
    assert names(tmp_path) == ["data.bin"]


def test_what_another_run_left_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    server.faults = ["cut"] * TRIES
    with pytest.raises(DownloadError, match="the next try goes on from there"):
        download(of(server), tmp_path, sleep=Waits())
    assert names(tmp_path) == ["data.bin.part", "data.bin.part.version"]
    left = (tmp_path / "data.bin.part").stat().st_size
    download(of(server), tmp_path)
    assert server.asked[-1]["Range"] == f"bytes={left}-"
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_a_changed_file_is_not_glued_to_the_old_part(server: Server, tmp_path: Path) -> None:
    server.faults = ["cut"] * TRIES
    with pytest.raises(DownloadError):
        download(of(server, known=False), tmp_path, sleep=Waits())
    server.etag, server.content = '"two"', CONTENT[::-1]
    assert download(of(server, known=False), tmp_path).path.read_bytes() == CONTENT[::-1]


def test_without_mark_and_hash_a_part_is_thrown_away(server: Server, tmp_path: Path) -> None:
    server.etag, server.faults = "", ["cut"]
    assert download(of(server, known=False), tmp_path, sleep=Waits()).path.read_bytes() == CONTENT
    assert [one.get("Range") for one in server.asked] == [None, None]


def test_a_server_without_ranges_sends_all_again(server: Server, tmp_path: Path) -> None:
    server.ranges, server.faults = False, ["cut"]
    assert download(of(server), tmp_path, sleep=Waits()).path.read_bytes() == CONTENT


def test_another_part_than_the_one_asked_for_is_not_used(server: Server, tmp_path: Path) -> None:
    server.faults = ["cut", "other part"]
    assert download(of(server), tmp_path, sleep=Waits()).path.read_bytes() == CONTENT
    assert [one.get("Range") for one in server.asked][2] is None


def test_a_part_that_is_complete_needs_no_request_or_none_of_its_bytes(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.bin.part").write_bytes(CONTENT)
    assert download(of(server), tmp_path).path.read_bytes() == CONTENT
    assert server.asked == []
    other = tmp_path / "other"
    other.mkdir()
    (other / "data.bin.part").write_bytes(CONTENT)
    (other / "data.bin.part.version").write_text(server.etag)
    assert download(of(server, known=False), other).path.read_bytes() == CONTENT
    assert len(server.asked) == 1


def test_a_part_longer_than_the_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.bin.part").write_bytes(CONTENT + b"x")
    assert download(of(server), tmp_path, sleep=Waits()).path.read_bytes() == CONTENT


def test_without_a_known_hash_it_says_not_checked(server: Server, tmp_path: Path) -> None:
    server.faults = ["no length"]
    done = download(of(server, known=False), tmp_path)
    assert (done.sha256, done.checked) == (DIGEST, False)
    assert "not checked" in done.described()


def test_another_file_of_the_same_size_is_refused(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    with pytest.raises(DownloadError) as error:
        download(of(server), tmp_path)
    assert DIGEST in str(error.value)
    assert hashlib.sha256(server.content).hexdigest() in str(error.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize("fault", ["", "no length"])
@pytest.mark.parametrize("change", [b"x", None])
def test_a_file_of_another_size_is_refused(server: Server, tmp_path: Path, fault: str, change: bytes | None) -> None:
    server.content = CONTENT + change if change else CONTENT[:-1]
    server.faults = [fault]
    seen: list[tuple[str, int, int]] = []
    with pytest.raises(DownloadError, match="is not the file that was published") as error:
        download(of(server), tmp_path, progress=lambda *step: seen.append(step))
    # an announced size is refused before the body, an unannounced one as soon as it is too long
    assert bool(seen) == (fault == "no length")
    assert ("it is longer than" in str(error.value)) == (fault == "no length" and bool(change))
    assert names(tmp_path) == []


def test_a_file_that_is_gone_is_said_at_once(server: Server, tmp_path: Path) -> None:
    server.faults = ["404"]
    with pytest.raises(DownloadError, match=r"HTTP 404 Not Found\. The file may have moved"):
        download(of(server), tmp_path)
    assert len(server.asked) == 1
    assert names(tmp_path) == []


def test_no_network_is_tried_some_times(tmp_path: Path) -> None:
    waits = Waits()
    nowhere = Home("data", "data.bin", "http://127.0.0.1:9/data.bin", "nothing")
    with pytest.raises(DownloadError, match=rf"not reached \(Connection refused\), {TRIES} times in a row"):
        download(nowhere, tmp_path, sleep=waits)
    assert len(waits) == TRIES - 1


def test_a_spoilt_file_in_the_cache_is_replaced(server: Server, tmp_path: Path) -> None:
    for spoilt in (b"short", CONTENT[:-1] + b"?"):
        (tmp_path / "data.bin").write_bytes(spoilt)
        assert download(of(server), tmp_path).fresh
        assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_a_spoilt_file_stays_where_the_download_fails(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(b"short")
    server.faults = ["404"]
    with pytest.raises(DownloadError):
        download(of(server), tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == b"short"


def test_one_process_at_a_time(server: Server, tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    with pytest.raises(ResultsError, match="is being written by another run"):
        download(of(server), tmp_path)
    lock.release()
    assert server.asked == []
    assert download(of(server), tmp_path).fresh


def test_what_the_disk_refuses_is_one_sentence(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match="could not be written or read"):
        download(of(server), tmp_path / "file" / "below")


def test_no_room_is_said_before_anything_is_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(DownloadError, match="needs 700,001 bytes more"):
        download(of(server), tmp_path)
    assert "data.bin" not in names(tmp_path)


# --- homes and cache --------------------------------------------------------------------------------------------------


def test_homes_have_one_name_each_and_hashes_of_the_right_length() -> None:
    assert len({one.name for one in HOMES}) == len({one.file for one in HOMES}) == len(HOMES)
    for one in HOMES:
        assert one.url.startswith("https://")
        assert one.url.endswith("/" + one.file)
        assert one.sha256 is None or len(bytes.fromhex(one.sha256)) == 32
        assert (one.size is None) == (one.sha256 is None)
        assert home(one.name) is one
        if one.sha256:
            assert recognised(one.sha256.upper()) is one
    assert recognised(DIGEST) is None
    with pytest.raises(UnknownNameError, match="did you mean 'counterfact'"):
        home("counterfacts")


def test_known_1000_is_the_file_of_its_home() -> None:
    path = shared("data", "known_1000", "known_1000.json")
    assert recognised(sha256_of(path)) is home("known_1000")
    assert path.stat().st_size == home("known_1000").size


def test_a_public_home_by_its_name_and_a_file_of_that_name_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: Server
) -> None:
    monkeypatch.setenv("ENGRAMSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    ours = (of(server),)
    monkeypatch.setattr("engramscope.records.homes.HOMES", ours)
    monkeypatch.setattr("engramscope.records.located.HOMES", ours)
    assert located("elsewhere.json") == Path("elsewhere.json")
    assert not server.asked
    assert located("data") == tmp_path / "cache" / "data" / "data.bin"
    assert located(Path("data")).read_bytes() == CONTENT
    (tmp_path / "data").write_text("mine")
    assert located("data") == Path("data")


def test_records_of_a_public_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: Server) -> None:
    monkeypatch.setenv("ENGRAMSCOPE_CACHE", str(tmp_path / "cache"))
    text = '{"id": "a", "prompt": "The capital of Peru is", "subject": "Peru", "target": "Quito", "true": "Lima"}\n'
    server.content = text.encode()
    ours = (Home("data", "data.jsonl", server.url, "test data", len(server.content)),)
    monkeypatch.setattr("engramscope.records.homes.HOMES", ours)
    monkeypatch.setattr("engramscope.records.located.HOMES", ours)
    seen: list[str] = []
    (record,) = facts_file("data", progress=lambda what, done, total: seen.append(what))
    assert (record.fact.subject, record.fact.target, record.fact.true) == ("Peru", "Quito", "Lima")
    assert seen


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: Server) -> None:
    monkeypatch.setenv("ENGRAMSCOPE_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    assert download(of(server)).path == tmp_path / "mine" / "data" / "data.bin"
    monkeypatch.delenv("ENGRAMSCOPE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "engramscope"
    for nothing in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", nothing)
        assert cache_folder() == tmp_path / ".cache" / "engramscope"
    monkeypatch.setattr("sys.platform", "darwin")
    assert cache_folder() == tmp_path / "Library" / "Caches" / "engramscope"
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_folder() == tmp_path / "local" / "engramscope" / "Cache"

"""Downloading a public file: with progress, resumed where it broke off, checked, and kept in the cache."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from engramscope.errors import EngramscopeError
from engramscope.records.cache import cache_folder
from engramscope.records.homes import Home, home
from engramscope.results.lock import FolderLock

Progress = Callable[[str, int, int], object]

TRIES = 4
TIMEOUT_S = 60.0
FIRST_WAIT_S = 1.0
_CHUNK = 1 << 18
_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")


class DownloadError(EngramscopeError):
    """A file could not be downloaded, or is not the one that was expected."""


@dataclass(frozen=True, slots=True)
class Download:
    """A file in the cache.

    Attributes:
        path: where it is.
        home: where it came from.
        sha256: of its bytes.
        fresh: whether it was downloaded just now, and not found in the cache.
    """

    path: Path
    home: Home
    sha256: str
    fresh: bool

    @property
    def checked(self) -> bool:
        """Whether its SHA-256 was known beforehand, and is the expected one."""
        return self.home.sha256 is not None

    def described(self) -> str:
        """One sentence on the file and whether it was checked."""
        verdict = "as expected" if self.checked else "not checked, because none is known for this file"
        return f"{self.path}: {self.path.stat().st_size:,} bytes, SHA-256 {self.sha256} ({verdict})."


class _Transient(Exception):
    """Worth another try: what happened."""


class _Body(Protocol):
    def read(self, amount: int, /) -> bytes: ...


def download(
    which: str | Home,
    folder: Path | None = None,
    *,
    progress: Progress | None = None,
    sleep: Callable[[float], object] = time.sleep,
) -> Download:
    """The file of a public home, from the cache or downloaded now.

    Bytes go to `<file>.part` and stay there when the connection breaks or the process is stopped; the next call goes on
    from there. The file takes its name only after its size and SHA-256 were found right, as far as they are known. A
    file in the cache is checked in the same way each time, and downloaded again where it is not the expected one.

    Args:
        which: the name of a home, or a home.
        folder: where to keep it; None for `cache_folder()`/data.
        progress: called with what is done, bytes done and bytes in all (0 where unknown).
        sleep: called with seconds between tries.

    Raises:
        UnknownNameError: no home has this name.
        DownloadError: not reached, refused, broken off after all tries, of another size or SHA-256; or the disk
            refuses.
        ResultsError: another process downloads to this folder.
    """
    wanted = home(which) if isinstance(which, str) else which
    place = folder if folder is not None else cache_folder() / "data"
    path = place / wanted.file
    report = progress or (lambda what, done, total: None)
    try:
        found = _checked(path, wanted, report) if path.is_file() else None
        if found is not None:
            return Download(path, wanted, found, fresh=False)
        place.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(place)
        try:
            partial = _Partial(path, wanted)
            _fill(partial, report, sleep)
            digest = _verified(partial, report)
            partial.finish()
        finally:
            lock.release()
    except OSError as error:
        # what the network refuses was dealt with; this is the disk
        raise DownloadError(f"{path} could not be written or read: {error.strerror or error}.") from None
    return Download(path, wanted, digest, fresh=True)


def sha256_of(path: Path, progress: Progress | None = None) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(f"checking {path.name.removesuffix('.part')}", done, total)
    return digest.hexdigest()


class _Partial:
    """What is there of a file so far, and by which mark the server knows the version that it came from."""

    def __init__(self, path: Path, wanted: Home) -> None:
        self.path = path.with_name(path.name + ".part")
        self.home = wanted
        self._final, self._mark = path, path.with_name(path.name + ".part.version")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def headers(self) -> dict[str, str]:
        """What to send so that the server sends only the rest, and only if its file is still the same."""
        mark = self._mark.read_text(encoding="utf-8").strip() if self._mark.is_file() else ""
        if self.size and not mark and self.home.sha256 is None:
            # with neither a mark nor a hash, a mixture of two versions would not be noticed
            self.clear()
        if not self.size:
            return {}
        return {"Range": f"bytes={self.size}-"} | ({"If-Range": mark} if mark else {})

    def begin(self, mark: str) -> None:
        self.clear()
        if mark:
            self._mark.write_text(mark, encoding="utf-8")

    def clear(self) -> None:
        self.path.unlink(missing_ok=True)
        self._mark.unlink(missing_ok=True)

    def finish(self) -> None:
        with self.path.open("rb+") as handle:
            os.fsync(handle.fileno())
        self.path.replace(self._final)
        self._mark.unlink(missing_ok=True)


def _fill(partial: _Partial, report: Progress, sleep: Callable[[float], object]) -> None:
    for attempt in range(1, TRIES + 1):
        try:
            _go_on(partial, report)
        except _Transient as trouble:
            if attempt == TRIES:
                kept = f" The {partial.size:,} bytes so far are kept; the next try goes on from there."
                raise DownloadError(
                    f"{partial.home.url}: {trouble}, {TRIES} times in a row. Is there a network?"
                    + (kept if partial.size else "")
                ) from None
            sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
        else:
            return


def _go_on(partial: _Partial, report: Progress) -> None:
    """One request, and its whole body; returns once the file is complete as far as the server says."""
    wanted = partial.home
    if wanted.size is not None and partial.size == wanted.size:
        return
    request = urllib.request.Request(wanted.url, headers={"User-Agent": "engramscope", **partial.headers()})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        _refused(partial, error)
        return
    except http.client.HTTPException as error:
        raise _Transient(f"the answer is no HTTP ({type(error).__name__})") from None
    except OSError as error:
        raise _Transient(f"not reached ({_words(error)})") from None
    with answer:
        start, total = _start_and_total(answer.status, answer.headers)
        if start is not None and start != partial.size:
            partial.clear()
            raise _Transient("the server sent another part than the one that was asked for")
        if start is None:
            partial.begin(_version(answer.headers))
        _expect(partial, total)
        with partial.path.open("ab") as out:
            _copy(answer, out, partial, total, report)
    if total is not None and partial.size < total:
        raise _Transient(f"the answer broke off after {partial.size:,} of {total:,} bytes")


def _start_and_total(status: int, headers: http.client.HTTPMessage) -> tuple[int | None, int | None]:
    """Where the body starts (None: it is the whole file), and the size of the whole file (None: not said)."""
    length = headers.get("Content-Length", "")
    if status != http.HTTPStatus.PARTIAL_CONTENT:
        return None, int(length) if length.isdecimal() else None
    found = _RANGE.fullmatch(headers.get("Content-Range", ""))
    if found is None or found[1] is None:
        return -1, None
    return int(found[1]), int(found[2]) if found[2] != "*" else None


def _version(headers: http.client.HTTPMessage) -> str:
    """By what a server can be asked whether its file is still the same; a weak mark does not promise the same bytes."""
    mark = headers.get("ETag", "")
    return mark if mark and not mark.startswith("W/") else headers.get("Last-Modified", "")


def _copy(answer: _Body, out: IO[bytes], partial: _Partial, total: int | None, report: Progress) -> None:
    done = out.tell()
    whole = partial.home.size or total or 0
    while True:
        try:
            chunk = answer.read(_CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise _Transient(f"the answer broke off after {done:,} bytes ({_words(error)})") from None
        if not chunk:
            return
        out.write(chunk)
        done += len(chunk)
        report(f"downloading {partial.home.file}", done, whole)
        if partial.home.size is not None and done > partial.home.size:
            out.close()
            partial.clear()
            raise DownloadError(
                _other_file(partial.home, f"it is longer than the {partial.home.size:,} bytes expected")
            )


def _expect(partial: _Partial, total: int | None) -> None:
    """Refuse a file of another size before it is downloaded, and one for which there is no room."""
    wanted = partial.home
    if total is not None and wanted.size is not None and total != wanted.size:
        partial.clear()
        raise DownloadError(_other_file(wanted, f"it has {total:,} bytes where {wanted.size:,} are expected"))
    needed = (wanted.size or total or 0) - partial.size
    free = shutil.disk_usage(partial.path.parent).free
    if needed > free:
        raise DownloadError(
            f"{wanted.file} needs {needed:,} bytes more in {partial.path.parent}, where {free:,} are free. Make room, "
            "or choose another folder (environment variable ENGRAMSCOPE_CACHE)."
        )


def _refused(partial: _Partial, error: urllib.error.HTTPError) -> None:
    """Turn an HTTP error into ours; returns only where it means that the whole file is there already."""
    with error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and partial.size:
            found = _RANGE.fullmatch(error.headers.get("Content-Range", ""))
            if found is not None and found[2] == str(partial.size):
                return
            partial.clear()
            raise _Transient("the part that is there does not fit the server's file")
        if error.code == http.HTTPStatus.TOO_MANY_REQUESTS or error.code >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
            raise _Transient(f"HTTP {error.code} {error.reason}")
        raise DownloadError(
            f"{partial.home.url}: HTTP {error.code} {error.reason}. The file may have moved; if you have a copy of "
            f"{partial.home.file}, give its path in place of the name."
        )


def _verified(partial: _Partial, report: Progress) -> str:
    wanted, size = partial.home, partial.size
    if wanted.size is not None and size != wanted.size:
        partial.clear()
        raise DownloadError(_other_file(wanted, f"it has {size:,} bytes where {wanted.size:,} are expected"))
    digest = sha256_of(partial.path, report)
    if wanted.sha256 is not None and digest != wanted.sha256:
        partial.clear()
        raise DownloadError(_other_file(wanted, f"its SHA-256 is {digest} where {wanted.sha256} is expected"))
    return digest


def _checked(path: Path, wanted: Home, report: Progress) -> str | None:
    """The SHA-256 of a file in the cache, or None where it is not the expected file."""
    if wanted.size is not None and path.stat().st_size != wanted.size:
        return None
    digest = sha256_of(path, report)
    return digest if wanted.sha256 in (None, digest) else None


def _other_file(wanted: Home, why: str) -> str:
    return f"{wanted.url} is not the file that was published: {why}. Nothing of it was kept."


def _words(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    return str(getattr(reason, "strerror", None) or reason or type(error).__name__).rstrip(".")

"""One writer per results folder: a lock that dies with the process that holds it."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from engramscope.errors import ResultsError
from engramscope.results.atomic import disk_sentence

LOCK_NAME = ".lock"


class FolderLock:
    """An advisory lock on `folder/.lock`, held by the operating system for this process.

    The lock is the system's (`flock`), not the existence of the file: when a process dies, by SIGKILL too, its lock is
    gone with it, and the file it left is taken over. The file holds the process id for the message.

    Args:
        folder: the results folder.

    Raises:
        ResultsError: another process (or another object of this one) holds the lock, or the disk refuses.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_NAME
        try:
            self._descriptor: int | None = self._acquire()
        except OSError as error:
            raise ResultsError(disk_sentence(self._path, error)) from None

    def release(self) -> None:
        """Give the lock back and remove its file; harmless when called twice."""
        if self._descriptor is None:
            return
        # removed while still held, so that nobody can lock a name that is about to vanish (see _acquire)
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = None

    def _acquire(self) -> int:
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            if not _try_lock(descriptor):
                owner = os.pread(descriptor, 32, 0).decode("ascii", errors="replace").strip() if _PREAD else ""
                os.close(descriptor)
                who = f" (process {owner})" if owner.isdigit() else ""
                raise ResultsError(
                    f"{self._path.parent} is being written by another run{who}. "
                    "Wait for it to end, or choose another folder."
                )
            # the former holder may have removed the file between our open and our lock: then we locked a ghost
            try:
                same = os.path.samestat(os.fstat(descriptor), self._path.stat())
            except FileNotFoundError:
                same = False
            if same:
                os.ftruncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode("ascii"))
                return descriptor
            os.close(descriptor)


_PREAD = hasattr(os, "pread")

if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        try:
            # a byte far beyond the content, so that the process id stays readable
            os.lseek(descriptor, 1 << 20, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

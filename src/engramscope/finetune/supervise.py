"""Start the process that trains, hear what it says, and end it in an orderly way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from engramscope.errors import CheckError, EngramscopeError, InputError
from engramscope.finetune._worker import DONE, FULL, STOPPED, full_sentence
from engramscope.finetune.layout import SUPERVISED, Job, Layout

_PAUSE = 0.1
_ENDING = (
    "Ending. What has been trained is saved first, after the validation where one is under way; Ctrl-C again ends at "
    "once."
)
#: seconds that a process that was asked to end may say nothing before it is killed
_PATIENCE = 180.0
_MODULE = "engramscope.finetune._worker"
#: glibc keeps what it was given back: every batch needs it again, and zeroed pages of the kernel take their time
_KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_TOP_PAD_": "67108864"}


class TrainingError(EngramscopeError):
    """The process that trains has died; the message says how to go on."""


def command(layout: Layout, processes: int) -> list[str]:
    """The command line of the training."""
    if processes == 1:
        return [sys.executable, "-m", _MODULE, str(layout.root)]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    return [sys.executable, *launcher, _MODULE, str(layout.root)]


def environment(job: Job) -> dict[str, str]:
    """The environment of the training: one GPU unless there are several processes, and no threads that nobody needs."""
    found = {**os.environ, "TOKENIZERS_PARALLELISM": "false", SUPERVISED: "1"}
    processes = job.settings.processes
    if job.device == "cpu":
        found["CUDA_VISIBLE_DEVICES"] = ""
        for name, value in _KEEP_MEMORY.items():
            found.setdefault(name, value)
        if processes > 1:
            found.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    elif processes == 1:
        # with several the Trainer would copy the model to each of them, which is slower than one
        found["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return found


def run_worker(layout: Layout, job: Job, hear: Callable[[Mapping[str, Any]], None]) -> None:
    """Train in a process of its own until it ends.

    Args:
        layout: a folder that was prepared.
        job: what stands in it.
        hear: called with every event.

    Raises:
        InputError: what the process says is at fault.
        CheckError: its own check failed.
        TrainingError: it died.
        KeyboardInterrupt: it was asked to end; it has saved, unless it was asked twice.
    """
    layout.events.unlink(missing_ok=True)
    layout.stop.unlink(missing_ok=True)
    faults: list[Mapping[str, Any]] = []
    reader = _Reader(layout, hear, faults)
    with layout.log.open("wb") as log:
        # a session of its own: Ctrl-C comes here, and the process is told by a file
        process = subprocess.Popen(
            command(layout, job.settings.processes), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env=environment(job), start_new_session=True,
        )  # fmt: skip
    try:
        while process.poll() is None:
            reader.read()
            time.sleep(_PAUSE)
    except KeyboardInterrupt:
        _end(process, layout, reader)
        raise
    except BaseException:
        _kill(process)
        raise
    reader.read()
    _judge(process.returncode, layout, faults)


class _Reader:
    """Reads the events as they are added."""

    def __init__(
        self, layout: Layout, hear: Callable[[Mapping[str, Any]], None], faults: list[Mapping[str, Any]]
    ) -> None:
        self._path, self._hear, self._faults = layout.events, hear, faults
        self._place = 0

    def read(self) -> bool:
        """Hand on what is new; whether there was anything."""
        if not self._path.exists():
            return False
        with self._path.open("rb") as file:
            file.seek(self._place)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._place += len(whole)
        for line in whole.splitlines():
            event = json.loads(line)
            if event["event"] == "fault":
                self._faults.append(event)
            else:
                self._hear(event)
        return bool(whole)

    def say(self, text: str) -> None:
        """A sentence that is not the training's own."""
        self._hear({"event": "supervisor", "text": text})


def _end(process: subprocess.Popen[bytes], layout: Layout, reader: _Reader) -> None:
    """Ask the process to save and end; a second Ctrl-C ends it at once."""
    try:
        layout.stop.touch()
        with suppress(OSError):  # nobody may be left to listen
            reader.say(_ENDING)
        heard = time.monotonic()
        while process.poll() is None and time.monotonic() < heard + _PATIENCE:
            with suppress(OSError):
                if reader.read():
                    heard = time.monotonic()
            time.sleep(_PAUSE)
        with suppress(OSError):
            reader.read()
    except KeyboardInterrupt:
        pass
    finally:
        _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _judge(code: int, layout: Layout, faults: list[Mapping[str, Any]]) -> None:
    if faults:
        sentences = list(dict.fromkeys(sentence for event in faults for sentence in event["faults"]))
        raise InputError(sentences) if faults[0]["input"] else CheckError("\n".join(sentences))
    if code == DONE:
        return
    if code == FULL:
        raise InputError(full_sentence(layout.root))
    # torchrun has a code of its own for whatever its processes end with
    if code == STOPPED or layout.stop.exists():
        raise KeyboardInterrupt
    again = "The same command with --resume goes on from the last checkpoint."
    if code < 0 or code in (128 + signal.SIGKILL, 128 + signal.SIGTERM):
        number = -code if code < 0 else code - 128
        why = " (usually because memory is used up; --set train_batch=4 --set accumulation=8 needs less)"
        raise TrainingError(
            f"The training process was killed by signal {number}{why if number == signal.SIGKILL else ''}. {again}"
        )
    lines = [line for line in layout.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    last = lines[-1].strip() if lines else "it said nothing"
    raise TrainingError(f"The training process failed: {last} (all of it: {layout.log}). {again}")

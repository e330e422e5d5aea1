"""The process that trains: `python -m engramscope.finetune._worker FOLDER`, or the same under `torchrun`.

A process of its own, so that all its memory is given back when it ends. It reads `work/job.json` of the folder, and
says what it does in `work/events.jsonl`.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from engramscope.errors import CheckError, InputError, ResultsError, out_of_memory
from engramscope.finetune.layout import Layout
from engramscope.results.lock import FolderLock

DONE, FAULT, STOPPED, FULL = 0, 2, 3, 4
#: seconds between two words about the same thing
_PAUSE = 0.3


class Events:
    """Lines of JSON for whoever started the process.

    Args:
        path: where they are added.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._last = path, {}

    def add(self, **event: Any) -> None:
        """One event, on the disk at once."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event, ensure_ascii=False) + "\n")

    def tell(self, what: str, done: int, total: int) -> None:
        """Progress; not more often than a person can read."""
        now = time.monotonic()
        if done >= total or now - self._last.get(what, -1.0) >= _PAUSE:
            self._last[what] = now
            self.add(event="progress", what=what, done=done, total=total)


def run(folder: Path) -> int:
    """Train in a folder that was prepared.

    Returns:
        The exit code: done, at fault, stopped on request, or the disk is full (then it may not even say so).
    """
    from safetensors import SafetensorError
    from transformers.utils import logging as hf_logging

    from engramscope.finetune.training import Listener, train

    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    layout = Layout(folder)
    events = Events(layout.events)
    listener = Listener(
        events.tell, lambda row: events.add(event="epoch", row=row), lambda text: events.add(event="say", text=text)
    )
    lock: FolderLock | None = None
    try:
        if os.environ.get("RANK", "0") == "0":
            # whoever started an earlier process may be gone, and that process still saving
            lock = FolderLock(layout.work)
        return DONE if train(layout, listener) else STOPPED
    except (InputError, CheckError) as error:
        # whoever writes whole files has put the full disk into words of its own
        if isinstance(error, ResultsError) and sentence_of(error, folder) == full_sentence(folder):
            return _no_room(layout, events)
        faults = list(getattr(error, "faults", (str(error),)))
        events.add(event="fault", faults=faults, input=isinstance(error, InputError))
        # for a person who started it by hand
        sys.stderr.write("".join(f"engramscope: {one}\n" for one in faults))
        return FAULT
    except (OSError, RuntimeError, SafetensorError) as error:
        sentence = sentence_of(error, folder)
        if sentence is None:
            raise
        if sentence == full_sentence(folder):
            return _no_room(layout, events)
        with suppress(OSError):
            events.add(event="fault", faults=[sentence], input=True)
        return FAULT
    finally:
        if lock is not None:
            lock.release()


def _no_room(layout: Layout, events: Events) -> int:
    """Say that the disk is full, if it takes that; what could not be written in full only takes room."""
    from engramscope.finetune.keeper import remove_incomplete

    remove_incomplete(layout)
    shutil.rmtree(layout.work / "final", ignore_errors=True)
    with suppress(OSError):
        events.add(event="fault", faults=[full_sentence(layout.root)], input=True)
    return FULL


def sentence_of(error: BaseException, folder: Path) -> str | None:
    """What a person can do about an error of the machine; None where that is unknown."""
    chain: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in chain:
        chain.append(one)
        one = one.__cause__ or one.__context__
    if any(_is_full(one) for one in chain):
        return full_sentence(folder)
    if any(out_of_memory(one) for one in chain):
        return (
            "There is not enough memory for a batch. Halve it and double the accumulation, which learns the same: "
            "--set train_batch=4 --set accumulation=8, in a new folder; or make chunks shorter (--set chunk=256)."
        )
    return None


def full_sentence(folder: Path) -> str:
    """What is said when the disk is full."""
    return (
        f"The disk with {folder} is full; a checkpoint needs about three times the size of the model, and two are "
        "kept. Make room and run the same command with --resume: the last complete checkpoint is still there."
    )


def _is_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    text = str(error)
    # torch and safetensors write in C++ and Rust, and say it in words
    return any(
        words in text for words in ("No space left", "os error 28", "PytorchStreamWriter failed", "unexpected pos")
    )


if __name__ == "__main__":
    code = run(Path(sys.argv[1]))
    sys.stdout.flush()
    # the process may hold a group of processes open that has lost a member
    os._exit(code) if code in (FAULT, FULL) and int(os.environ.get("WORLD_SIZE", "1")) > 1 else sys.exit(code)

"""The end of a training that was asked for: nothing that is still at work is killed, and no request is lost."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from engramscope.finetune import supervise
from engramscope.finetune.layout import SUPERVISED, Job, Layout, complete_checkpoints
from engramscope.finetune.training import Listener, train
from tests.finetune.small import prepared

#: says a word every twentieth of a second once it is asked to end, then nothing, then it is done
TALKING = """
import json, sys, time
from pathlib import Path
stop, events, result = (Path(name) for name in sys.argv[1:4])
words, silence = int(sys.argv[4]), float(sys.argv[5])
def say(number):
    with events.open("a") as file:
        file.write(json.dumps({"event": "progress", "what": "validation", "done": number, "total": words}) + chr(10))
say(0)
while not stop.exists():
    time.sleep(0.01)
for number in range(words):
    time.sleep(0.05)
    say(number + 1)
time.sleep(silence)
result.touch()
"""


def _ended(folder: Path, words: int, silence: float, heard: Any) -> bool:
    """Ask a process to end once it has said something; whether it came to its own end."""
    layout, result = Layout(folder), folder / "result"
    layout.work.mkdir(parents=True)
    process = subprocess.Popen(
        [sys.executable, "-c", TALKING, str(layout.stop), str(layout.events), str(result), str(words), str(silence)],
        start_new_session=True,
    )
    until = time.monotonic() + 60
    while not layout.events.exists() and time.monotonic() < until:
        time.sleep(0.01)
    supervise._end(process, layout, supervise._Reader(layout, heard, []))
    assert process.poll() is not None
    return result.exists()


@pytest.mark.parametrize(("words", "silence", "finishes"), [(50, 0.0, True), (3, 60.0, False)])
def test_a_process_that_still_speaks_may_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: int, silence: float, finishes: bool
) -> None:
    """Two and a half seconds of words outlast a patience of one and a half; silence does not."""
    monkeypatch.setattr(supervise, "_PATIENCE", 1.5)
    heard: list[Any] = []
    assert _ended(tmp_path / "run", words, silence, heard.append) is finishes
    assert heard[0] == {"event": "supervisor", "text": supervise._ENDING}
    assert [event["done"] for event in heard[1:]] == list(range(words + 1))


def test_a_process_may_save_where_nobody_listens_any_more(tmp_path: Path) -> None:
    def gone(event: Any) -> None:
        raise BrokenPipeError(str(event))

    assert _ended(tmp_path / "run", 10, 0.0, gone)


@pytest.mark.parametrize("supervised", [True, False])
def test_a_request_that_came_while_the_process_was_starting_counts(
    dropping: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, supervised: bool
) -> None:
    """What stands there when a person begins by hand is of an earlier run."""
    layout, told = prepared(dropping, tmp_path / "run"), []
    assert supervise.environment(Job.read(layout.job))[SUPERVISED]
    monkeypatch.delenv(SUPERVISED, raising=False)
    if supervised:
        monkeypatch.setenv(SUPERVISED, "1")
    layout.stop.touch()
    assert train(layout, Listener(lambda *told_: told.append(told_), lambda row: None, lambda text: None)) is (
        not supervised
    )
    assert bool(complete_checkpoints(layout.checkpoints)) is not supervised

"""A model and its tokenizer on disk, all files or none."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from engramscope.models.quiet import quietly

#: written last, so that a folder with a configuration has its weights
_LAST = ("config.json", "adapter_config.json")


def write_checkpoint(hf: Any, tokenizer: Any, work: Path, into: Path, **more: Any) -> None:
    """Write a model (or adapters) and its tokenizer: first into `work`, then each file in its place in `into`.

    Args:
        hf: the model.
        tokenizer: goes beside it; None for no tokenizer.
        work: an empty folder on the same disk; it is gone afterwards, whatever happens.
        into: where the files are wanted.
        more: what else `save_pretrained` of the model is given.

    Raises:
        OSError: the disk refuses; then nothing was moved.
        SafetensorError: the same, where the library that writes weights met it.
    """
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        with quietly():
            hf.save_pretrained(str(work), **more)
            if tokenizer is not None:
                tokenizer.save_pretrained(str(work))
        (work / "README.md").unlink(missing_ok=True)
        for path in sorted(work.iterdir(), key=lambda one: (one.name in _LAST, one.name)):
            # the library that writes weights lets nobody else read them
            path.chmod(0o644)
            path.replace(into / path.name)
    finally:
        shutil.rmtree(work, ignore_errors=True)

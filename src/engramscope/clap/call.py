"""What the stages of a whole study share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engramscope.clap.study import ClapStudy
from engramscope.study_inputs import located

#: where random weights are kept
BASE = "base"

Progress = Callable[[str, int, int], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Call:
    """One run of a whole study.

    Attributes:
        study: what is done.
        folder: where.
        here: where relative paths of the study start.
        progress: called with (what, done, total).
        say: called with sentences.
    """

    study: ClapStudy
    folder: Path
    here: Path
    progress: Progress | None
    say: Say

    def path(self, given: str) -> Path:
        """A path of the study file, which is relative to it."""
        return self.here / given

    @property
    def model(self) -> str:
        """What is trained, as `run_finetune` takes it."""
        return located(self.study.model.name, self.here)

    @property
    def base(self) -> str:
        """The model before training, as `load_model` takes it."""
        return str(self.folder / BASE) if self.study.model.random_weights else self.model


def relative(path: Path, folder: Path) -> str:
    """A path as it is seen from a folder that may be moved: relative where it lies inside, else whole."""
    inside, whole = path.resolve(), folder.resolve()
    return inside.relative_to(whole).as_posix() if inside.is_relative_to(whole) else str(inside)

"""What the process of one (case, tool) hands back, and the settings that it was given."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True)
class Settings:
    """How everything is run.

    Attributes:
        quick: tiny sizes: shows only whether everything works.
        full: peers run every cell; otherwise a random part, and the rest is extrapolated.
        budget_s: about how long a peer may take for one case, and how long our repeats may take together.
        repeats: how often Engramscope's sweep is timed, if the budget allows; the median counts.
        device: of torch.
        threads: of torch, for matrix products.
        executor: of Engramscope.
        profile: after the timed runs, run Engramscope once more and say which operations take the time.
    """

    quick: bool = False
    full: bool = False
    budget_s: float = 60.0
    repeats: int = 3
    device: str = "cpu"
    threads: int = 0
    executor: Literal["traversal", "reference"] = "traversal"
    profile: bool = False


@dataclass
class Result:
    """One tool on one case.

    Attributes:
        case, tool, version: what was run.
        status: "ok", "not installed", or what went wrong.
        weights: hash of the weights.
        seconds: for the whole case; extrapolated where not all cells were run.
        cells_run, cells: how many cells were run, how many the case has.
        host_bytes, cuda_bytes: what the work added to the memory at its peak.
        details: what only some tools can say.
        patched: logit differences of the patched runs [cells, draws, pairs]; NaN where a cell was not run.
    """

    case: str
    tool: str
    version: str = ""
    status: str = "ok"
    weights: str = ""
    seconds: float = float("nan")
    cells_run: int = 0
    cells: int = 0
    host_bytes: int = 0
    cuda_bytes: int | None = None
    details: dict[str, Any] = field(default_factory=dict)
    patched: np.ndarray | None = None

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    def as_json(self) -> dict[str, Any]:
        """Everything but the table of numbers."""
        return {key: value for key, value in asdict(self).items() if key != "patched"}

    def save(self, path: Path) -> None:
        """Write `path` and, beside it, the numbers."""
        path.write_text(json.dumps(self.as_json()), encoding="utf-8")
        if self.patched is not None:
            np.save(path.with_suffix(".npy"), self.patched)

    @classmethod
    def load(cls, path: Path) -> Result:
        result = cls(**json.loads(path.read_text(encoding="utf-8")))
        numbers = path.with_suffix(".npy")
        if numbers.exists():
            result.patched = np.load(numbers)
        return result

"""The errors a user can meet.

EngramscopeError            anything Engramscope raises on purpose
├── InputError              the user's input is at fault (exit code 2)
│   ├── StudyError          the study file: unknown key, wrong value
│   ├── PairsError          a pair file or one of its pairs
│   ├── ModelError          the model cannot be found or loaded
│   │   └── SiteError       the model does not offer this site
│   ├── UnknownNameError    no component, task or file reader has this name
│   └── ResultsError        a results folder that is not ours, or that does not match
└── CheckError              our own check failed: self-check at load, parity with the reference
"""

from __future__ import annotations

from collections.abc import Sequence


class EngramscopeError(Exception):
    """Base of everything that Engramscope raises on purpose; the message is a sentence for a person."""


class InputError(EngramscopeError):
    """Something the user gave is at fault. Carries every fault that was found, not only the first.

    Args:
        faults: one sentence per fault: what was expected, what came, which item, what to do.
    """

    def __init__(self, faults: str | Sequence[str]) -> None:
        self.faults: tuple[str, ...] = (faults,) if isinstance(faults, str) else tuple(faults)
        super().__init__("\n".join(self.faults))


class StudyError(InputError):
    """The study file is at fault."""


class PairsError(InputError):
    """A pair file, or pairs in it, are at fault."""


class ModelError(InputError):
    """The model cannot be found or loaded."""


class SiteError(ModelError):
    """The model does not offer this site; the message says why."""


class UnknownNameError(InputError):
    """A name that no component has; the message names the nearest known one."""


class ResultsError(InputError):
    """A results folder that is not ours, or that belongs to another study."""


class CheckError(EngramscopeError):
    """One of our own checks failed; a result computed under it would not be trustworthy."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the machine or of its device does not suffice; imports no torch."""
    said = str(error)  # torch's words on Linux and macOS, and on Windows
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "can't allocate memory" in said or "not enough memory" in said


def shortened(faults: Sequence[str], most: int = 20) -> list[str]:
    """The first faults of a long list, and how many more there are."""
    return list(faults) if len(faults) <= most else [*faults[:most], f"... and {len(faults) - most} more."]

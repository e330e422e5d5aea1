"""On what a benchmark was run: machine, versions, state of the repository."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import Settings

_PACKAGES = ("engramscope", "torch", "transformers", "transformer-lens", "nnsight", "numpy")


def facts(settings: Settings) -> dict[str, Any]:
    """What a reader needs to judge the seconds."""
    cuda = settings.device.startswith("cuda")
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": settings.threads,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "tf32": torch.backends.cuda.matmul.allow_tf32 if cuda else None,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """The name of the processor, as the system gives it."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    return names[0].split(":", 1)[1].strip() if names else platform.processor()


def _commit() -> str:
    """The commit, with a plus sign where files were changed since; empty without git."""
    try:
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")

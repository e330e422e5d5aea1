"""Who computed what with what: the facts of a manifest."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from engramscope.models.model import Model

_PACKAGES = ("engramscope", "torch", "transformers", "tokenizers", "numpy", "scipy", "pandas", "pyarrow")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """Operating system, processor and threads; no host name."""
    return {
        "system": platform.system(),
        "release": platform.release(),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }


def model_facts(model: Model) -> dict[str, Any]:
    """What identifies a model in a manifest."""
    anatomy = model.anatomy
    return {
        "name": model.name,
        "source": model.source,
        "model_type": anatomy.model_type,
        "revision": model.revision,
        "weight_hash": model.weight_hash(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "n_layers": anatomy.n_layers,
        "n_heads": anatomy.n_heads,
        "n_kv_heads": anatomy.n_kv_heads,
        "d_model": anatomy.d_model,
        "d_mlp": anatomy.d_mlp,
        "vocab": anatomy.vocab,
        "parameters": sum(parameter.numel() for parameter in model.hf.parameters()),
    }

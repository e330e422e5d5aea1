"""Two small trained models that come with the package, and the corpus they were trained on.

Importing this package reads no file and loads no deep learning library.
"""

from __future__ import annotations

from pathlib import Path

MODEL_NAMES = ("mini", "mini-llama")


def names() -> tuple[str, ...]:
    """Return the names of the bundled models.

    Returns:
        The names, in the order in which they are listed to people.
    """
    return MODEL_NAMES


def folder(name: str) -> Path:
    """Return the folder of a bundled model, as `from_pretrained` takes it.

    Args:
        name: One of `names()`.

    Returns:
        A folder with `config.json`, `model.safetensors` and the tokenizer.

    Raises:
        KeyError: No bundled model has this name.
    """
    if name not in MODEL_NAMES:
        raise KeyError(f"no bundled model is called {name!r}; there are: {', '.join(MODEL_NAMES)}")
    return Path(__file__).parent / "weights" / name

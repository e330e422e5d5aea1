"""Randomness that depends on names, not on order: the same pair gets the same draw in any set, process and machine."""

from __future__ import annotations

import hashlib
import json

import numpy as np


def digest(*key: int | str) -> bytes:
    """SHA-256 of the key; different keys never collide by concatenation ("ab", "c" is not "a", "bc")."""
    return hashlib.sha256(json.dumps(key, ensure_ascii=True).encode("ascii")).digest()


def generator(*key: int | str) -> np.random.Generator:
    """A generator whose stream is a function of the key alone.

    Python's own `hash` of a string changes from process to process, so it is not used. Philox is a counter-based
    generator: streams of different keys do not overlap.

    Args:
        key: for example (seed, pair id, number of the draw).
    """
    words = np.frombuffer(digest(*key), dtype="<u4")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([int(word) for word in words])))

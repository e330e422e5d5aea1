"""Where downloaded and computed files are kept between runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLE = "ENGRAMSCOPE_CACHE"


def cache_folder() -> Path:
    """The folder named by ENGRAMSCOPE_CACHE, else the platform's folder for caches; it need not exist yet.

    Linux and others: $XDG_CACHE_HOME/engramscope or ~/.cache/engramscope. macOS: ~/Library/Caches/engramscope. Windows:
    %LOCALAPPDATA%/engramscope/Cache.
    """
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "engramscope" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "engramscope"
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # the specification of XDG says that a relative path is to be ignored
    return (base if base.is_absolute() else Path.home() / ".cache") / "engramscope"

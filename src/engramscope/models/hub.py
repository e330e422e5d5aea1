"""What the Hugging Face hub, or the cache of it on this machine, has under a name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, scan_cache_dir, try_to_load_from_cache
from huggingface_hub.errors import (
    CacheNotFound,
    GatedRepoError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from engramscope.errors import ModelError
from engramscope.registry import nearest

#: seconds to wait for the hub before the cache is used
TIMEOUT = 8.0


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model of the hub.

    Attributes:
        revision: its commit; what was asked for where the hub could not be reached.
        offline: the hub was not reached, so only the cache can be used.
        files: the names of its files.
        folder: where the cache has it, if the hub was not reached: by its name some library would ask the hub again.
    """

    revision: str | None
    offline: bool
    files: tuple[str, ...]
    folder: str = ""


def resolve_hub(name: str, revision: str | None, bundled: Sequence[str]) -> HubModel:
    """Ask the hub once, without retries; without an answer, look into the cache.

    Raises:
        ModelError: no such model or revision, no access, or neither network nor cache.
    """
    try:
        info = HfApi().model_info(name, revision=revision, timeout=TIMEOUT)
    except RevisionNotFoundError:
        raise ModelError(f"The hub has a model {name!r}, but no revision {revision!r} of it.") from None
    except GatedRepoError:
        raise ModelError(
            f"The model {name!r} is gated: accept its terms on the hub and log in (`hf auth login`)."
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise ModelError(_unknown(name, bundled)) from None
    except Exception as error:  # noqa: BLE001  (which http library is behind the hub depends on its version)
        return _from_cache(name, revision, bundled, error)
    files = tuple(item.rfilename for item in info.siblings or ())
    if "config.json" not in files:
        raise ModelError(f"The hub's {name!r} has no config.json, so it holds no model of transformers.")
    return HubModel(info.sha or revision, False, files)


def _from_cache(name: str, revision: str | None, bundled: Sequence[str], error: Exception) -> HubModel:
    config = try_to_load_from_cache(name, "config.json", revision=revision)
    if not isinstance(config, str):
        why = "offline mode is on" if isinstance(error, OfflineModeIsEnabled) else "the hub cannot be reached"
        raise ModelError(
            f"There is no folder or bundled model {name!r}, and as a hub id it cannot be loaded: {why}, and this "
            f"machine's cache does not have it{nearest(name, tuple(bundled)).replace('Known', 'Bundled')}"
        )
    folder = Path(config).parent
    return HubModel(folder.name, True, tuple(item.name for item in folder.iterdir()), str(folder))


def _unknown(name: str, bundled: Sequence[str]) -> str:
    known = nearest(name, (*bundled, *_cached())).replace("Known", "On this machine")
    return f"There is no folder, bundled model or hub model {name!r} (or it is private){known}"


def _cached() -> tuple[str, ...]:
    try:
        return tuple(sorted(repo.repo_id for repo in scan_cache_dir().repos if repo.repo_type == "model"))
    except (CacheNotFound, OSError):
        return ()

"""Load a causal language model: a bundled one, one in a folder, or one on the Hugging Face hub."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from engramscope.errors import ModelError
from engramscope.models.hub import resolve_hub
from engramscope.models.model import Model, Origin
from engramscope.models.parts import find_blocks
from engramscope.models.quiet import quietly
from engramscope.registry import nearest

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model's files are.

    Attributes:
        name: how the user called it.
        source: bundled, folder or hub.
        path: what transformers is given: a folder or a hub id.
        revision: the commit of a hub model.
        offline: only files that are on this machine are to be used.
        files: names of the files that are there, where they could be listed.
    """

    name: str
    source: Origin
    path: str
    revision: str | None
    offline: bool
    files: tuple[str, ...] | None

    @property
    def options(self) -> dict[str, Any]:
        """Arguments for every `from_pretrained`."""
        return {"revision": self.revision or "main", "local_files_only": self.offline}


@dataclass(frozen=True, slots=True)
class SkeletonSizes:
    """What a configuration says about a model before its weights are loaded.

    Attributes:
        n_layers, n_heads, d_model, vocab: sizes.
        modules: dotted path of every module.
    """

    n_layers: int
    n_heads: int
    d_model: int
    vocab: int
    modules: tuple[str, ...]


def load_model(
    name: str,
    *,
    dtype: str = "float32",
    device: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    resident_gb: float | None = None,
    check: bool = True,
) -> Model:
    """Load a model, find its parts, and check that its sites can be read and written.

    Args:
        name: a bundled name ("mini"), a folder, or a hub id ("openai-community/gpt2").
        dtype: "float32", "bfloat16", "float16" or "float64".
        device: "auto" (the first of cuda, mps, cpu that is there), a device of torch such as "cuda:1", or "offload":
            the weights are spread over GPUs, main memory and disk, and each layer comes in when it is needed (needs the
            extra `large`, and a safetensors checkpoint for what stays on disk).
        revision: branch, tag or commit of a hub model.
        trust_remote_code: run code that comes with the model.
        allow_pickle: load a pickle checkpoint if there is no safetensors file; only from sources you trust.
        resident_gb: with "offload", main memory that weights may take, in GiB; as much as there is by default.
        check: run the self-checks.

    Returns:
        The model in evaluation mode, without cache, dropout and gradients, with eager attention.

    Raises:
        ModelError: it cannot be found or loaded, or is no causal language model; a sentence says what to do.
        CheckError: a self-check fails.
    """
    torch_dtype, torch_device = _dtype(dtype), None if device == "offload" else _device(device)
    spread = _spread(resident_gb) if torch_device is None else {}
    place = _locate(name, revision)
    config = _config(place, trust_remote_code=trust_remote_code)
    _ensure_causal_lm(place, config)
    _ensure_weights(place, allow_pickle=allow_pickle)
    tokenizer = _tokenizer(place, trust_remote_code=trust_remote_code)
    hf = _weights(place, config, torch_dtype, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle,
                  spread=spread)  # fmt: skip
    hf.config.use_cache = False
    hf.requires_grad_(False)
    hf = hf if torch_device is None else _moved(hf, torch_device, name)
    return Model.from_parts(hf, tokenizer, name=name, check=check, source=place.source, revision=place.revision)


def load_tokenizer(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer alone; nothing else is loaded.

    Raises:
        ModelError: it cannot be found or loaded, or cannot say where in the text its tokens are.
    """
    return _tokenizer(_locate(name, revision), trust_remote_code=trust_remote_code)


def load_config(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The configuration alone; no weights are loaded.

    Raises:
        ModelError: it cannot be found or read, or describes no causal language model.
    """
    place = _locate(name, revision)
    config = _config(place, trust_remote_code=trust_remote_code)
    _ensure_causal_lm(place, config)
    return config


def skeleton_sizes(config: Any) -> SkeletonSizes:
    """Sizes and module paths of a model from its configuration, built without memory for its weights.

    Raises:
        ModelError: the configuration does not describe a stack of blocks.
    """
    with torch.device("meta"):
        hf = AutoModelForCausalLM.from_config(config)
    text = config.get_text_config()
    return SkeletonSizes(
        n_layers=len(find_blocks(hf)),
        n_heads=int(text.num_attention_heads),
        d_model=int(text.hidden_size),
        vocab=int(text.vocab_size),
        modules=tuple(path for path, _ in hf.named_modules() if path),
    )


def _locate(name: str, revision: str | None) -> Place:
    from engramscope import bundled

    if name in bundled.names():
        folder = bundled.folder(name)
        if not folder.is_dir():
            raise ModelError(f"The bundled model {name!r} is not installed: its folder {folder} is missing; reinstall.")
        return _folder(name, "bundled", folder)
    if not name.strip():
        raise ModelError("There is no folder without a name; give a bundled name, a folder, or a hub id.")
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(name, "folder", path)
    if path.exists():
        raise ModelError(f"{name} is a file; give the folder that holds the model's config.json and weights.")
    if not _HUB_ID.fullmatch(name) or name.startswith((".", "~")):
        raise ModelError(f"There is no folder {name!r}, and it is no bundled name or hub id either.")
    hub = resolve_hub(name, revision, bundled.names())
    return Place(name, "hub", hub.folder or name, hub.revision, hub.offline, hub.files)


def _folder(name: str, source: Origin, folder: Path) -> Place:
    files = tuple(sorted(item.name for item in folder.iterdir() if item.is_file()))
    if "config.json" not in files:
        hint = " (this is a PEFT adapter: merge it into its base model first)" if "adapter_config.json" in files else ""
        raise ModelError(f"The folder {name} has no config.json, so it holds no model of transformers{hint}.")
    return Place(name, source, str(folder), None, True, files)


def _config(place: Place, *, trust_remote_code: bool) -> Any:
    try:
        return AutoConfig.from_pretrained(place.path, trust_remote_code=trust_remote_code, **place.options)
    except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ModelError(_config_sentence(place, error)) from None


def _config_sentence(place: Place, error: Exception) -> str:
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return (
            f"{place.name} comes with its own program code, which Engramscope does not run unless told to: pass "
            "trust_remote_code = true if you trust its source."
        )
    if "does not recognize this architecture" in text or "Unrecognized model" in text or "model_type" in text:
        kind = re.search(r"model type `([^`]+)`", text)
        which = f" {kind.group(1)!r}" if kind else ""
        return f"{place.name} is of an architecture{which} that the installed transformers does not know."
    return f"The configuration of {place.name} cannot be read: {text[:300]}"


def _ensure_causal_lm(place: Place, config: Any) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{place.name} is an encoder-decoder model ({config.model_type}); Engramscope works on decoder-only models."
        )
    architectures: Sequence[str] = getattr(config, "architectures", None) or ()
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if not remote and type(config) not in AutoModelForCausalLM._model_mapping:
        raise ModelError(
            f"{place.name} is no causal language model ({config.model_type}); Engramscope needs one that predicts the "
            "next token."
        )
    encoder = [
        item for item in architectures if re.search(r"ForMaskedLM|ForSequenceClass|ForTokenClass|ForQuestion", item)
    ]
    if encoder and len(encoder) == len(architectures):
        raise ModelError(
            f"{place.name} was saved as {encoder[0]}, which is no causal language model; Engramscope needs one that "
            "predicts the next token."
        )


def _ensure_weights(place: Place, *, allow_pickle: bool) -> None:
    if place.files is None:
        return
    if any(name.endswith((".safetensors", ".safetensors.index.json")) for name in place.files):
        return
    pickles = [name for name in place.files if re.fullmatch(r"pytorch_model.*\.bin|.*\.(pt|pth|ckpt)", name)]
    if not pickles:
        raise ModelError(f"{place.name} has no weights: there is no safetensors file beside its config.json.")
    if not allow_pickle:
        raise ModelError(
            f"{place.name} has only a pickle checkpoint ({pickles[0]}), which can run code when it is loaded; convert "
            "it to safetensors (load it once with transformers and call save_pretrained), or pass allow_pickle = true "
            "if you trust its source."
        )


def _tokenizer(place: Place, *, trust_remote_code: bool) -> Any:
    known = place.files
    if known is not None and not any(name in known for name in _TOKENIZER_FILES) and not trust_remote_code:
        raise ModelError(f"{place.name} has no tokenizer: none of {', '.join(_TOKENIZER_FILES[:4])} is there.")
    try:
        with quietly():
            tokenizer = AutoTokenizer.from_pretrained(
                place.path, trust_remote_code=trust_remote_code, use_fast=True, **place.options
            )
    except Exception as error:  # noqa: BLE001  (tokenizers raise bare Exception on a broken file)
        raise ModelError(f"The tokenizer of {place.name} cannot be loaded: {_short(error)}") from None
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"The tokenizer of {place.name} ({type(tokenizer).__name__}) cannot say which characters a token stands "
            "for; Engramscope needs one with a tokenizer.json."
        )
    return tokenizer


def _spread(resident_gb: float | None) -> dict[str, Any]:
    """Arguments of `from_pretrained` that leave weights where there is room."""
    try:
        from accelerate.utils import get_max_memory
    except ImportError:
        raise ModelError('device = "offload" needs the package accelerate: pip install accelerate.') from None
    room: dict[Any, Any] = dict(get_max_memory())
    if resident_gb is not None:
        room["cpu"] = int(resident_gb * 2**30)
    return {"device_map": "auto", "max_memory": room}


def _weights(
    place: Place,
    config: Any,
    dtype: torch.dtype,
    *,
    trust_remote_code: bool,
    allow_pickle: bool,
    spread: dict[str, Any],
) -> Any:
    has_safetensors = place.files is None or any("safetensors" in name for name in place.files)
    options: dict[str, Any] = {
        "config": config, "dtype": dtype, "trust_remote_code": trust_remote_code, "output_loading_info": True,
        "use_safetensors": True if has_safetensors or not allow_pickle else None, **place.options, **spread,
    }  # fmt: skip
    try:
        with quietly():
            try:
                loaded: Any = AutoModelForCausalLM.from_pretrained(place.path, attn_implementation="eager", **options)
            except (ValueError, TypeError) as error:
                # a few classes accept no choice of attention; what they offer is found by the probe
                if "attn" not in str(error):
                    raise
                loaded = AutoModelForCausalLM.from_pretrained(place.path, **options)
    except Exception as error:  # noqa: BLE001  (safetensors, torch and transformers each raise their own)
        raise ModelError(f"The weights of {place.name} cannot be loaded: {_short(error)}") from None
    hf, info = loaded
    lacking = sorted(str(key) for key in info.get("missing_keys") or ())
    wrong = sorted(str(key) for key in info.get("mismatched_keys") or ())
    if lacking or wrong:
        raise ModelError(
            f"The weights of {place.name} do not fit its configuration: {len(lacking)} are missing and {len(wrong)} "
            f"have another shape (for example {(lacking + wrong)[0]}); they would be random, and nothing could be "
            "concluded from them."
        )
    return hf


def _moved(hf: Any, device: torch.device, name: str) -> Any:
    try:
        return hf.to(device)
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"{name} cannot be put on {device}: {_short(error)}") from None


def _dtype(name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise ModelError(f"Unknown dtype {name!r}{nearest(name, tuple(_DTYPES))}")
    return _DTYPES[name]


def _device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ModelError(f"Unknown device {name!r}; give auto, cpu, cuda, cuda:0, …, mps or offload.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"Device {name!r} was asked for, but this machine has no CUDA device that torch can use.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(f"There is no device {name!r}: torch sees {torch.cuda.device_count()} CUDA devices.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ModelError(f"Device {name!r} was asked for, but this machine has no Metal device that torch can use.")
    return device


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}…"
